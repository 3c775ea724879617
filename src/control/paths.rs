//! Where things are: the system's folders, or the user's own with `--rootless`.

use std::path::{Path, PathBuf};

/// Folders and sockets of one daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// Configuration: a folder of YAML files, or one file.
    pub config: PathBuf,
    /// Sockets.
    pub runtime: PathBuf,
    /// The store.
    pub state: PathBuf,
}

impl Paths {
    /// Of a daemon of the system.
    pub fn system() -> Self {
        Self {
            config: "/etc/hostweave/conf.d".into(),
            runtime: "/run/hostweave".into(),
            state: "/var/lib/hostweave".into(),
        }
    }

    /// Of a daemon of one user (XDG Base Directory Specification 0.8).
    pub fn rootless() -> Self {
        let uid = nix::unistd::getuid();
        let home = |folder: &str| absolute("HOME").unwrap_or_else(std::env::temp_dir).join(folder);
        Self {
            config: absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home(".config")).join("hostweave"),
            runtime: match absolute("XDG_RUNTIME_DIR") {
                Some(dir) => dir.join("hostweave"),
                None => std::env::temp_dir().join(format!("hostweave-{uid}")),
            },
            state: absolute("XDG_STATE_HOME").unwrap_or_else(|| home(".local/state")).join("hostweave"),
        }
    }

    /// Where the control socket is, unless said otherwise.
    pub fn control(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }
}

/// The read-only socket beside a control socket.
pub fn observe_of(control: &Path) -> PathBuf {
    control.with_file_name("observe.sock")
}

/// The control socket that a client looks for: the system's if there is one, else the user's, else the system's.
pub fn find_control() -> PathBuf {
    let system = Paths::system().control();
    let own = Paths::rootless().control();
    if !system.exists() && own.exists() { own } else { system }
}

/// A variable of the environment that holds an absolute path; the specification ignores relative ones.
fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_read_only_socket_stands_beside_the_control_socket() {
        assert_eq!(Paths::system().control(), Path::new("/run/hostweave/control.sock"));
        assert_eq!(observe_of(Path::new("/run/x/control.sock")), Path::new("/run/x/observe.sock"));
    }
}
