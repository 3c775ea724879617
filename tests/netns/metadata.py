"""Metadata at 169.254.169.254 and fd00:ec2::254, asked by curl and by cloud-init's own data sources in containers.

Needs root (namespaces, TAP devices). cloud-init is not installed: it would take over this machine at its next boot. Its package
is unpacked below `target` instead.
"""

import glob
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from containers import addressed, containers  # noqa: E402
from harness import process, requirements  # noqa: E402
from harness.guest import ROOT  # noqa: E402
from harness.suite import Skip, Suite  # noqa: E402


def check():
    requirements.root()
    requirements.tun()
    requirements.programs("ip", "curl", "busybox", "python3")


suite = Suite("metadata", check)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEpk2wXxzXHVZxUJKbo9PYt8WQkFz0zKqGxVv0pO3K9c ops@example"
SERVERS = ["http://169.254.169.254", "http://[fd00:ec2::254]"]
# The one that Debian's packages are for.
PYTHON = "/usr/bin/python3"
USER_DATA = "#cloud-config\nhostname: from-user-data\n# \u00e9\n"


def scene(case, *names, networks=None, metadata=None):
    """Containers of which the first has metadata."""
    metadata = metadata or {"userData": USER_DATA, "sshKeys": [KEY], "vendorData": "#cloud-config\n{}\n"}
    daemon, spaces = containers(case, *names, networks=networks)
    daemon.host(region="ord1")
    spaces[0].port.metadata = metadata
    daemon.reload()
    addressed(*spaces)
    return daemon, spaces


def curl(space, url, *arguments):
    """Status and body."""
    done = space.sh("curl -gsS -m 10 -w '\\n%%{http_code}' %s '%s'" % (" ".join(arguments), url), check=False)
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def token(space, server):
    status, body = curl(space, server + "/latest/api/token", "-X PUT", "-H 'X-aws-ec2-metadata-token-ttl-seconds: 60'")
    assert status == 200, body
    return "-H 'X-aws-ec2-metadata-token: %s'" % body


@suite.test("curl reads a port's own metadata with a token over both families, by the default route and with the address on link")
def own(case):
    daemon, (a, b) = scene(case, "a", "b")
    on_link = ["", "ip route add 169.254.0.0/16 dev hw-a scope link", "ip -6 route add fd00:ec2::254/128 dev hw-a"]
    for setup in on_link:
        a.sh(setup or "true")
        for server in SERVERS:
            status, body = curl(a, server + "/latest/user-data")
            assert status == 401 and "PUT /latest/api/token" in body, (status, body)
            header = token(a, server)
            assert curl(a, server + "/latest/user-data", header) == (200, USER_DATA)
            assert curl(a, server + "/latest/meta-data/local-ipv4", header) == (200, a.port.v4)
            assert curl(a, server + "/latest/meta-data/ipv6", header) == (200, a.port.v6)
            assert curl(a, server + "/latest/meta-data/mac", header) == (200, a.port.mac)
            assert curl(a, server + "/latest/meta-data/public-keys/0/openssh-key", header) == (200, KEY)
            assert curl(a, server + "/latest/meta-data/", header, "-H 'X-Forwarded-For: 203.0.113.9'")[0] == 403
            assert curl(a, server + "/latest/meta-data/", header, "-H 'Host: evil.example'")[0] == 421
            # Another port has its own, and nothing of this one's.
            assert curl(b, server + "/latest/user-data", header)[0] == 401
            assert curl(b, server + "/latest/user-data", token(b, server))[0] == 404
            assert curl(b, server + "/latest/meta-data/local-ipv4", token(b, server)) == (200, b.port.v4)
    assert a.port.v4 in a.sh("ip route get 169.254.169.254"), "the source is the port's"
    assert "169.254.169.254" in a.sh("ip neigh show dev hw-a"), "it was on link"
    # Somebody else's address is dropped before it gets here.
    a.sh("ip address add %s/32 dev hw-a" % b.port.v4)
    done = a.sh("curl -sS -m 2 --interface %s %s/" % (b.port.v4, SERVERS[0]), check=False)
    assert done.returncode == 28, "no answer at all: %s" % done.stderr
    assert daemon.stats()["a"]["dropped"].get("spoofed_ip", 0) > 0
    assert "hostweave_metadata_requests_total{status=\"401\"}" in daemon.http("/metrics")[1]
    daemon.check_ledger()


@suite.test("metadata passes a deny default by a built-in rule that trace names, and a host can take it away or switch it off")
def policy(case):
    daemon, (a,) = scene(case, "a")
    trace = ["trace", "--from", "default/a", "--to", "169.254.169.254:80"]
    daemon.host(defaultPolicy="deny")
    daemon.reload()
    for server in SERVERS:
        assert curl(a, server + "/")[0] == 401
    assert "builtin/metadata" in daemon.cli(*trace)
    daemon.host(infrastructure={"metadata": False})
    daemon.reload()
    for server in SERVERS:
        assert a.sh("curl -gsS -m 2 %s/" % server, check=False).returncode == 28
    assert daemon.cli(*trace, check=False).returncode == 1
    daemon.host(defaultPolicy="allow", metadata={"tokens": "optional"})
    daemon.reload()
    for server in SERVERS:
        assert curl(a, server + "/latest/meta-data/local-ipv4") == (200, a.port.v4), "version 1"
    daemon.host(metadata={"enabled": False})
    daemon.reload()
    for server in SERVERS:
        assert a.sh("curl -gsS -m 5 %s/" % server, check=False).returncode == 7, "refused"
    daemon.check_ledger()


def cloud_init():
    """The folder of the module `cloudinit`."""
    folder = os.path.join(ROOT, "target", "cloud-init")
    modules = os.path.join(folder, "usr", "lib", "python3", "dist-packages")
    if not os.path.isdir(modules):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        done = process.run(["sh", "-c", "cd '%s' && apt-get -o Acquire::Retries=5 download -q cloud-init" % folder], timeout=300, check=False)
        packages = glob.glob(folder + "/*.deb")
        if not packages:
            raise Skip("the package cloud-init could not be downloaded: %s" % done.stderr.strip())
        process.run(["dpkg-deb", "-x", packages[0], folder])
    done = process.run([PYTHON, "-c", "import requests, yaml, jinja2, configobj, jsonpatch"], check=False)
    if done.returncode != 0:
        raise Skip("not installed: %s" % done.stderr.strip().splitlines()[-1])
    return modules


# What `cloud-init init` does for a data source, with DMI data as the VMM would give them.
SOURCES = """
import json, sys, tempfile
from cloudinit import helpers, util
what, argument = sys.argv[1:]
paths = helpers.Paths({"cloud_dir": tempfile.mkdtemp(), "run_dir": tempfile.mkdtemp()})
util.find_devs_with = lambda *a, **k: []
if what == "nocloud":
    from cloudinit.sources import DataSourceNoCloud as module
    module.dmi.read_dmi_data = lambda key: argument if key == "system-serial-number" else None
    source = module.DataSourceNoCloudNet({}, None, paths)
    assert source._get_data(), "the data source found nothing"
    extra = {"vendor": util.decode_binary(source.vendordata_raw)}
else:
    from cloudinit.sources import DataSourceEc2 as module
    source = module.DataSourceEc2({}, None, paths)
    source.metadata_urls = [argument]
    source._cloud_name = module.CloudNames.AWS
    assert source.wait_for_metadata_service(), "the data source found no service"
    crawled = source.crawl_metadata()
    source.metadata, source.userdata_raw = crawled["meta-data"], crawled["user-data"]
    source.identity = crawled["dynamic"]["instance-identity"]["document"]
    extra = {"region": source.region, "token": bool(source._api_token), "nics": crawled["meta-data"]["network"]}
hostname = source.get_hostname()
print(json.dumps({
    "id": source.get_instance_id(), "keys": source.get_public_ssh_keys(), "user": util.decode_binary(source.userdata_raw),
    "hostname": getattr(hostname, "hostname", hostname), **extra,
}))
"""


def run_cloud_init(case, space, *arguments):
    script = os.path.join(case.run, "sources.py")
    with open(script, "w") as out:
        out.write(SOURCES)
    command = "PYTHONPATH=%s %s %s %s" % (cloud_init(), PYTHON, script, " ".join("'%s'" % a for a in arguments))
    return json.loads(space.sh(command).splitlines()[-1])


@suite.test("cloud-init's NoCloud finds name, keys, user data and vendor data by the serial number that attach-args prints")
def nocloud(case):
    cloud_init()
    daemon, (a, b) = scene(case, "a", "b")
    for server in SERVERS:
        for seed in ("/nocloud/", "/"):
            for name in ("nocloud-net", "nocloud"):
                found = run_cloud_init(case, a, "nocloud", "ds=%s;s=%s%s" % (name, server, seed))
                assert (found["hostname"], found["keys"], found["user"]) == ("a", [KEY], USER_DATA), found
                assert found["vendor"] == "#cloud-config\n{}\n" and found["id"].startswith("i-"), found
    bare = run_cloud_init(case, b, "nocloud", "ds=nocloud-net;s=%s/nocloud/" % SERVERS[0])
    assert (bare["hostname"], bare["keys"], bare["user"]) == ("b", [], ""), bare
    assert bare["id"] != found["id"], "another instance"
    config = json.loads(curl(a, SERVERS[0] + "/nocloud/network-config", "-A Cloud-Init/24.1")[1])
    assert config["ethernets"]["eth0"]["match"]["macaddress"] == a.port.mac, config
    daemon.check_ledger()


@suite.test("cloud-init's Ec2 gets a token and crawls the whole tree")
def ec2(case):
    cloud_init()
    daemon, (a,) = scene(case, "a")
    for server in SERVERS:
        found = run_cloud_init(case, a, "ec2", server)
        assert (found["hostname"], found["keys"], found["user"]) == ("a", [KEY], USER_DATA), found
        assert found["token"] and found["region"] == "ord1", found
        nic = found["nics"]["interfaces"]["macs"][a.port.mac]
        assert (nic["local-ipv4s"], nic["ipv6s"]) == (a.port.v4, a.port.v6), nic
    daemon.check_ledger()


if __name__ == "__main__":
    suite.main()
