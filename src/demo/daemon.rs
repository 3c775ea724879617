//! The daemon of the demo: `hostweave daemon --rootless` as a process of its own, in a folder that goes with the demo.
//!
//! A process, and not a thread, because the story kills it. Everything else goes through its control socket.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::config::kind::DEFAULT_NAMESPACE;
use crate::guests::board::Board;
use crate::guests::control::Control;

/// How long the daemon may take to answer or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest path of the folder: `ports/default.stranger.sock` must still fit into a socket address (107 octets).
const FOLDER_LEN_MAX: usize = 60;

/// One worker: the guests of the demo run on the same machine.
const HOST_CONFIG: &str = "\
apiVersion: hostweave.dev/v1alpha1
kind: HostConfig
metadata: {name: demo}
spec:
  workers: {count: 1}
";

/// A folder that only this user may enter, removed when dropped.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it below the system's folder for temporary files.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> anyhow::Result<Self> {
        let mut base = std::env::temp_dir();
        if base.as_os_str().len() + "/hostweave-demo.XXXXXX".len() > FOLDER_LEN_MAX {
            base = "/tmp".into();
        }
        let template = base.join("hostweave-demo.XXXXXX");
        let path = nix::unistd::mkdtemp(&template)
            .with_context(|| format!("cannot make a folder for the demo below {} (TMPDIR)", base.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is in a folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The running daemon.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    control: Control,
}

impl Daemon {
    /// Starts it in `folder` and waits until it answers.
    ///
    /// # Errors
    /// It does not start; the error says what it said.
    pub fn start(folder: &Path, board: &Board) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("conf"))?;
        fs::write(folder.join("conf/host.yaml"), HOST_CONFIG)?;
        let control = Control::new(folder.join("run/control.sock"), DEFAULT_NAMESPACE);
        let child = spawn(folder, &control)?;
        let mut daemon = Self { child, folder: folder.to_owned(), control };
        daemon.wait_ready(board)?;
        Ok(daemon)
    }

    /// Its control socket.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a warning, as a crash does.
    ///
    /// # Errors
    /// It had ended before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the daemon had ended by itself ({status}): {}", self.last_words());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again after its end.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    pub fn start_again(&mut self, board: &Board) -> anyhow::Result<()> {
        self.child = spawn(&self.folder, &self.control)?;
        self.wait_ready(board)
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// It did not end in time, or not well.
    pub fn stop(&mut self) -> anyhow::Result<Duration> {
        let asked = Instant::now();
        let pid = i32::try_from(self.child.id()).context("a process id")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).context("ending the daemon")?;
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if asked.elapsed() > PATIENCE {
                bail!("the daemon did not end within {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if !status.success() {
            bail!("the daemon ended with {status}: {}", self.last_words());
        }
        Ok(asked.elapsed())
    }

    fn wait_ready(&mut self, board: &Board) -> anyhow::Result<()> {
        let control = self.control.clone();
        board.wait("the daemon answers", PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the daemon did not start ({status}): {}{}", self.last_words(), io_uring_hint());
            }
            Ok(control.call("server.hello", json!({"client": "demo"})).ok())
        })?;
        Ok(())
    }

    /// The end of what the daemon wrote to its log.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let words = lines[lines.len().saturating_sub(3)..].join("; ");
        if words.is_empty() { "it said nothing".to_owned() } else { words }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(folder: &Path, control: &Control) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("finding this program")?;
    let log = File::options().create(true).append(true).open(folder.join("daemon.log"))?;
    let child = Command::new(&program)
        .args(["daemon", "--rootless", "--color", "never", "--control"])
        .arg(control.path())
        .arg("--config")
        .arg(folder.join("conf"))
        .arg("--runtime")
        .arg(folder.join("run"))
        .arg("--state")
        .arg(folder.join("state"))
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn();
    child.with_context(|| format!("starting {}", program.display()))
}

/// What to do where the kernel gives no `io_uring`, which containers and hardened hosts forbid.
fn io_uring_hint() -> &'static str {
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match (setting.trim(), hostweave_uplink::uring::Uring::new().is_err()) {
        (_, false) => "",
        ("1" | "2", true) => "\n      io_uring is disabled here: sudo sysctl kernel.io_uring_disabled=0",
        (_, true) => {
            "\n      io_uring does not work here: the kernel must be 6.1 or newer, and a container needs \
             `--security-opt seccomp=unconfined` (or a profile that allows io_uring)"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_private_and_goes() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::new().unwrap();
        let path = folder.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(path.as_os_str().len() <= FOLDER_LEN_MAX);
        drop(folder);
        assert!(!path.exists());
    }
}
