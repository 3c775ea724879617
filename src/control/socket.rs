//! The control sockets: one daemon at a time, permissions, and who is at the other end.
//!
//! Beside each socket stands a lock file. Who holds the lock owns the path; the file remembers which socket (device, inode
//! and time of birth) its holder made, so that a later daemon removes a stale socket only if it was one of ours.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};

use crate::config::desired::SOCKET_PATH_MAX;

/// The group that may use the control socket, if it exists.
pub const GROUP: &str = "hostweave";

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client {
    /// Process, where the kernel knows it.
    pub pid: Option<i32>,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whether the socket is the read-only one.
    pub read_only: bool,
}

impl Client {
    /// The peer of a connection (`SO_PEERCRED`).
    ///
    /// # Errors
    /// The connection is gone.
    pub fn of(stream: &UnixStream, read_only: bool) -> std::io::Result<Self> {
        let peer = stream.peer_cred()?;
        Ok(Self { pid: peer.pid(), uid: peer.uid(), gid: peer.gid(), read_only })
    }
}

/// Who may connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// File mode.
    pub mode: u32,
    /// Group of the file; `None` leaves the process's own.
    pub gid: Option<u32>,
}

/// A socket that is ours until this value is dropped.
pub struct ControlSocket {
    /// Accepts connections.
    pub listener: UnixListener,
    path: PathBuf,
    identity: String,
    _lock: Flock<File>,
}

impl ControlSocket {
    /// Takes the lock and listens. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Another daemon holds the lock, something that is not ours stands at the path, or the kernel refuses.
    pub fn bind(path: &Path, permissions: Permissions) -> anyhow::Result<Self> {
        let octets = path.as_os_str().len();
        if octets > SOCKET_PATH_MAX {
            bail!(
                "the socket path {} has {octets} octets; a socket path has at most {SOCKET_PATH_MAX}",
                path.display()
            );
        }
        let mut lock = lock(path)?;
        remove_stale(path, &mut lock)?;
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        let identity = identity(&std::fs::symlink_metadata(path)?);
        lock.set_len(0)?;
        lock.rewind()?;
        lock.write_all(identity.as_bytes())?;
        // Group first: until the mode is set, nobody but the owner may connect.
        if let Some(gid) = permissions.gid {
            std::os::unix::fs::chown(path, None, Some(gid))
                .with_context(|| format!("cannot give {} to group {gid}", path.display()))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(permissions.mode))?;
        Ok(Self { listener, path: path.to_owned(), identity, _lock: lock })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Only what we made: somebody may have put another socket there.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

/// What tells one file from another, also from one that gets the same inode later.
fn identity(metadata: &std::fs::Metadata) -> String {
    let born = metadata.created().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    format!("{} {} {}", metadata.dev(), metadata.ino(), born.map_or(0, |born| born.as_nanos()))
}

fn lock(path: &Path) -> anyhow::Result<Flock<File>> {
    let lock_path = path.with_extension("lock");
    let mut options = OpenOptions::new();
    // O_NOFOLLOW: the folder may be one that others can write to.
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&lock_path).with_context(|| format!("cannot open {}", lock_path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => anyhow::anyhow!(
            "another hostweave daemon runs here: it holds {} (see: hostweave status --control {})",
            lock_path.display(),
            path.display()
        ),
        errno => anyhow::Error::from(errno).context(format!("cannot lock {}", lock_path.display())),
    })
}

/// Removes a socket that an earlier holder of the lock left behind.
fn remove_stale(path: &Path, lock: &mut File) -> anyhow::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    };
    let mut remembered = String::new();
    lock.take(128).read_to_string(&mut remembered).unwrap_or_default();
    let ours = remembered == identity(&metadata);
    if !metadata.file_type().is_socket() || !ours {
        bail!("{} exists and was not made by hostweave; remove it, or use another --control", path.display());
    }
    std::fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Permissions = Permissions { mode: 0o600, gid: None };

    #[tokio::test]
    async fn a_second_daemon_is_refused_and_the_socket_goes_with_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let first = ControlSocket::bind(&path, OWN).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = ControlSocket::bind(&path, OWN).err().unwrap();
        assert!(error.to_string().contains("another hostweave daemon"), "{error}");
        drop(first);
        assert!(!path.exists());
        ControlSocket::bind(&path, OWN).unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_of_ours_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let mut killed = ControlSocket::bind(&path, OWN).unwrap();
        killed.identity.clear();
        drop(killed);
        assert!(path.exists(), "as after kill -9");
        drop(ControlSocket::bind(&path, OWN).unwrap());

        let _foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(ControlSocket::bind(&path, OWN).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(ControlSocket::bind(&path, OWN).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }

    #[tokio::test]
    async fn too_long_a_path_says_so() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(110)));
        assert!(ControlSocket::bind(&path, OWN).err().unwrap().to_string().contains("at most 107"));
    }
}
