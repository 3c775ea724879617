//! The command line: what it prints where, and how it ends.

use crate::support::{Daemon, TWO_PORTS, hostweave};

const A_PORT: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: Port
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec:
  network: default
  backend: {vhostUser: {queues: 2}}
";

#[test]
fn what_get_prints_goes_back_into_apply_unchanged() {
    let daemon = Daemon::started();
    let file = daemon.write("web.yaml", A_PORT);
    let file = file.to_str().unwrap();
    let done = daemon.cli(&["apply", "-f", file]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "Port shop/web-0 created\n"), "{}", done.stderr);
    assert!(done.stderr.starts_with("next: "), "one next step: {}", done.stderr);

    let yaml = daemon.ok(&["get", "port/web-0", "-n", "shop", "-o", "yaml"]);
    let done = daemon.cli_with(&["apply", "-f", "-"], &yaml);
    assert_eq!((done.code, done.stdout.as_str()), (0, "Port shop/web-0 unchanged\n"), "{}", done.stderr);
    assert_eq!(done.stderr, "", "nothing to warn of, nothing to do next");

    assert_eq!(daemon.ok(&["apply", "-f", file]), "Port shop/web-0 unchanged\n");
    let json = daemon.json(&["get", "ports", "-n", "shop"]);
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!(json[1]["apiVersion"], "hostweave.dev/v1alpha1");
    assert_eq!(daemon.ok(&["get", "ports", "-n", "shop", "-o", "name"]), "port/file-0\nport/web-0\n");
    let table = daemon.ok(&["get", "ports", "-A"]);
    assert!(table.starts_with("NAMESPACE   NAME"), "{table}");
}

#[test]
fn diff_says_what_would_change_and_dry_run_changes_nothing() {
    let daemon = Daemon::started();
    let file = daemon.write("web.yaml", A_PORT);
    let file = file.to_str().unwrap();
    let done = daemon.cli(&["apply", "-f", file, "--dry-run=server"]);
    let said = "Port shop/web-0 created (dry run)\nlive connections: 0, of which 0 would break\n";
    assert_eq!((done.code, done.stdout.as_str()), (0, said));
    assert_eq!(daemon.cli(&["get", "port", "shop/web-0"]).code, 3);
    let done = daemon.cli(&["diff", "-f", file]);
    assert_eq!(done.code, 1);
    assert!(done.stdout.starts_with("--- /dev/null\n+++ Port shop/web-0\n"), "{}", done.stdout);
    daemon.ok(&["apply", "-f", file]);
    let done = daemon.cli(&["diff", "-f", file]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""));
    let changed = A_PORT.replace("app: web", "app: db");
    let done = daemon.cli_with(&["diff", "-f", "-"], &changed);
    assert_eq!(done.code, 1);
    assert!(done.stdout.contains("-    app: web\n+    app: db\n"), "{}", done.stdout);
}

#[test]
fn one_bad_object_and_nothing_is_applied() {
    let daemon = Daemon::started();
    let text = format!("{A_PORT}---\n{}", A_PORT.replace("web-0", "web-1").replace("queues: 2", "queues: 99"));
    let file = daemon.write("web.yaml", &text);
    let file = file.to_str().unwrap();
    let remote = daemon.cli(&["apply", "-f", file]);
    assert_eq!(remote.code, 5);
    assert_eq!(remote.stdout, "");
    assert!(remote.stderr.contains("web.yaml:13:") && remote.stderr.contains("queues: 99"), "{}", remote.stderr);
    assert!(remote.stderr.contains("nothing was applied"), "{}", remote.stderr);
    assert_eq!(daemon.cli(&["get", "port", "shop/web-0"]).code, 3);
    // The same text without a daemon.
    let offline = hostweave().args(["validate", "-f", file]).output().unwrap();
    assert_eq!(offline.status.code(), Some(5));
    assert_eq!(String::from_utf8_lossy(&offline.stderr), remote.stderr);
}

#[test]
fn what_comes_from_a_file_is_changed_only_there() {
    let daemon = Daemon::started();
    for arguments in [
        &["port", "delete", "shop/file-0"][..],
        &["delete", "port", "shop/file-0"],
        &["port", "down", "shop/file-0"],
        &["port", "set-labels", "shop/file-0", "a=b"],
    ] {
        let done = daemon.cli(arguments);
        assert_eq!(done.code, 5, "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains("conf/10.yaml:10"), "{arguments:?}: {}", done.stderr);
    }
    let done = daemon.cli_with(&["apply", "-f", "-"], TWO_PORTS);
    assert_eq!(done.code, 5);
    assert!(done.stderr.contains("conf/10.yaml"), "{}", done.stderr);
}

#[test]
fn exit_codes_tell_what_happened() {
    let daemon = Daemon::started();
    for (arguments, code) in [
        (&["status"][..], 0),
        (&["port", "get", "none"], 3),
        (&["get", "frobnicate"], 2),
        (&["get", "ports", "-l", "a b"], 2),
        (&["port", "add"], 2),
        (&["port", "add", "bad_name"], 5),
        (&["port", "add", "shop/x", "--ip", "10.99.0.1"], 5),
        (&["port", "delete", "none"], 3),
        (&["port", "delete", "none", "--if-exists"], 0),
        (&["delete", "network", "default"], 5),
        (&["explain", "Port.spec.nothing"], 3),
        (&["rpc", "port.frobnicate"], 2),
        (&["rpc", "port.list", "{"], 2),
        (&["port", "add", "a"], 0),
        (&["port", "add", "a"], 5),
        (&["port", "add", "a", "--may-exist"], 0),
    ] {
        let done = daemon.cli(arguments);
        assert_eq!(done.code, code, "{arguments:?}: {}{}", done.stdout, done.stderr);
        if code != 0 {
            assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "{arguments:?}");
        }
    }
    let mut daemon = daemon;
    daemon.stop();
    let done = daemon.cli(&["port", "list"]);
    assert_eq!(done.code, 4);
    assert!(done.stderr.contains("cannot reach the daemon at") && done.stderr.contains("help:"), "{}", done.stderr);
    assert_eq!(daemon.cli(&["status", "--wait", "-T", "50ms"]).code, 7);
}

#[test]
fn labels_links_and_pruning() {
    let daemon = Daemon::started();
    daemon.ok(&["port", "add", "a", "-l", "app=web", "-l", "old=1"]);
    daemon.ok(&["port", "set-labels", "a", "tier=front", "old-"]);
    let labels = &daemon.json(&["port", "get", "a"])["labels"];
    assert_eq!(labels, &serde_json::json!({"app": "web", "tier": "front"}));
    daemon.ok(&["port", "down", "a"]);
    assert_eq!(daemon.json(&["port", "get", "a"])["state"], "down");
    daemon.ok(&["port", "up", "a"]);
    assert_eq!(daemon.json(&["port", "get", "a"])["state"], "waiting-for-frontend");
    let web = A_PORT.replace("namespace: shop", "namespace: default");
    let done = daemon.cli_with(&["apply", "-f", "-", "--prune", "-l", "app=web"], &web);
    assert_eq!(done.stdout, "Port default/web-0 created\nPort default/a deleted\n", "{}", done.stderr);
    assert_eq!(daemon.ok(&["port", "list", "-o", "name"]), "port/web-0\n");
}

#[test]
fn describe_ends_with_events_and_attach_args_can_be_pasted() {
    let daemon = Daemon::started();
    daemon.ok(&["port", "add", "a", "--queues", "2"]);
    let text = daemon.ok(&["describe", "port", "a"]);
    assert!(text.contains("Socket path:") && text.contains("ObjectCreated"), "{text}");
    let socket = daemon.path("run/ports/default.a.sock");
    let qemu = daemon.ok(&["port", "attach-args", "a", "--vmm", "qemu"]);
    for part in ["share=on", "host_mtu=1500", "rx_queue_size=1024", "mq=on", socket.to_str().unwrap()] {
        assert!(qemu.contains(part), "{part}: {qemu}");
    }
    let incoming = daemon.json(&["port", "describe", "a"])["port"]["incomingSocketPath"].clone();
    let qemu = daemon.ok(&["port", "attach-args", "a", "--incoming"]);
    assert!(qemu.contains(incoming.as_str().unwrap()), "{qemu}");
    assert!(std::path::Path::new(incoming.as_str().unwrap()).exists());
    for vmm in ["cloud-hypervisor", "libvirt", "crosvm"] {
        assert!(daemon.ok(&["port", "attach-args", "a", "--vmm", vmm]).contains(socket.to_str().unwrap()));
    }
}

#[test]
fn observe_filters_what_happened() {
    let daemon = Daemon::started();
    daemon.ok(&["port", "add", "a"]);
    daemon.ok(&["port", "add", "b"]);
    let text = daemon.ok(&["observe", "--pod", "a", "--type", "ObjectCreated"]);
    assert!(text.lines().count() == 1 && text.contains("Port default/a"), "{text}");
    let json = daemon.ok(&["observe", "--type", "port", "-o", "json", "--last", "1"]);
    assert!(json.contains("\"name\":\"b\""), "{json}");
    assert_eq!(daemon.cli(&["observe", "--type", "nothing"]).code, 2);
}

#[test]
fn a_shell_completes_the_names_that_the_daemon_knows() {
    let daemon = Daemon::started();
    let file = daemon.write("web.yaml", A_PORT);
    daemon.ok(&["apply", "-f", file.to_str().unwrap()]);
    daemon.ok(&["port", "add", "web-9"]);
    // As the script of bash calls it: the words so far, and which of them the cursor is in.
    let complete = |control: &std::path::Path, words: &[&str]| -> Vec<String> {
        let mut command = hostweave();
        command.env("HOSTWEAVE_COMPLETE", "bash").env("HOSTWEAVE_CONTROL", control).env("_CLAP_IFS", "\n");
        let index = words.len().to_string();
        command.env("_CLAP_COMPLETE_INDEX", index).args(["--", "hostweave"]).args(words);
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    };
    let control = daemon.control();
    assert_eq!(complete(&control, &["port", "get", "we"]), ["web-9"]);
    assert_eq!(complete(&control, &["-n", "shop", "port", "attach-args", "we"]), ["web-0"]);
    assert_eq!(complete(&control, &["port", "stats", "shop/w"]), ["shop/web-0"]);
    assert_eq!(complete(&control, &["get", "port/web"]), ["port/web-9"]);
    assert_eq!(complete(&control, &["describe", "ports", "web"]), ["web-9"]);
    assert_eq!(complete(&control, &["port", "add", "x", "--network", "def"]), ["default"]);
    assert!(complete(&control, &["port", "list", "--namespace", "sh"]).contains(&"shop".to_owned()));
    assert_eq!(complete(&control, &["port", "att"]), ["attach-args"]);
    assert_eq!(complete(&control, &["edit", "port/web"]), ["port/web-9"]);
    assert_eq!(complete(&control, &["connectivity", "test", "--guests", "q"]), ["qemu"]);
    assert_eq!(complete(&control, &["bugreport", "--red"]), ["--redact"]);
    assert_eq!(complete(&control.with_extension("none"), &["port", "get", "we"]), [""; 0], "a TAB shows no errors");
}

#[test]
fn commands_that_need_no_daemon() {
    let run = |arguments: &[&str]| {
        let output = hostweave().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(run(&["explain", "Port.spec.backend.vhostUser.mode"]).contains("listen"));
    assert!(run(&["schema", "port"]).contains("\"$schema\""));
    assert!(run(&["rpc", "--list"]).contains("port.attachArgs"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completion", shell]).contains("HOSTWEAVE_COMPLETE"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    run(&["man", dir.path().to_str().unwrap()]);
    assert!(dir.path().join("hostweave-port-add.1").exists());
    let help = run(&["--help"]);
    assert!(!help.contains("attach-netns") && help.contains("observe"), "{help}");
}
