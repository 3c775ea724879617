//! A listening UNIX socket that leaves nothing behind and takes nothing away.
//!
//! Beside each socket stands a lock file, held by the process that owns it. A socket path that is there already is
//! removed only if its lock file is there too and nobody holds it: then it is ours, from a daemon that was killed
//! (SEMANTICS VU2).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Longest path of a UNIX socket in octets: `sun_path` less its NUL.
pub const PATH_MAX: usize = 107;

/// A socket that cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// See `PATH_MAX`.
    #[error("the socket path {path} has {len} octets; UNIX sockets allow {PATH_MAX}")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Octets.
        len: usize,
    },
    /// Another process has it.
    #[error("another process already listens on {0}")]
    Busy(PathBuf),
    /// Something is there that we did not make.
    #[error("{0} exists and was not made by hostweave; remove it, or use another path")]
    Foreign(PathBuf),
    /// A system call failed.
    #[error("cannot {what} {path}")]
    System {
        /// Which.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Checks that a path fits `sun_path`.
///
/// # Errors
/// When it does not.
pub fn check_path(path: &Path) -> Result<(), SocketError> {
    let len = path.as_os_str().len();
    if len > PATH_MAX { Err(SocketError::PathTooLong { path: path.to_owned(), len }) } else { Ok(()) }
}

/// A bound socket; removed on drop.
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

impl Listening {
    /// Binds `path` with mode 0660 and `group`.
    ///
    /// # Errors
    /// When the path is taken, or the system says no.
    pub fn bind(path: &Path, group: Option<u32>) -> Result<Self, SocketError> {
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let system = |what, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::System { what, path, source }
        };
        let known = lock_path.exists();
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(system("create", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SocketError::Busy(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(system("lock", &lock_path)(error)),
        }
        // From here on the lock file is ours to remove again.
        let result = Self::bind_locked(path, group, known);
        match result {
            Ok(listener) => Ok(Self { listener, path: path.to_owned(), lock_path, _lock: lock }),
            Err(error) => {
                if !known {
                    let _ = std::fs::remove_file(&lock_path);
                }
                Err(error)
            }
        }
    }

    fn bind_locked(path: &Path, group: Option<u32>, known: bool) -> Result<UnixListener, SocketError> {
        let system = |what| move |source| SocketError::System { what, path: path.to_owned(), source };
        match std::fs::symlink_metadata(path) {
            Ok(found) if known && found.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(system("remove the stale socket"))?;
            }
            Ok(_) => return Err(SocketError::Foreign(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system("look at")(error)),
        }
        let listener = UnixListener::bind(path).map_err(system("listen on"))?;
        let open = || {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
                .map_err(system("set the permissions of"))?;
            if let Some(group) = group {
                std::os::unix::fs::chown(path, None, Some(group)).map_err(system("give the group its rights on"))?;
            }
            listener.set_nonblocking(true).map_err(system("configure"))
        };
        let result = open();
        if let Err(error) = result {
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(listener)
    }

    /// The listener; it does not block.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // Somebody else may have removed them already; the lock ends with the file.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stale_socket_of_ours_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let first = Listening::bind(&path, None).unwrap();
        assert!(matches!(Listening::bind(&path, None), Err(SocketError::Busy(_))));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(first);
        assert!(!path.exists() && !folder.path().join("a.sock.lock").exists());

        // What a killed daemon leaves behind.
        drop(UnixListener::bind(&path).unwrap());
        File::create(folder.path().join("a.sock.lock")).unwrap();
        drop(Listening::bind(&path, None).unwrap());

        // Somebody else's socket, and somebody else's file.
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(Listening::bind(&path, None), Err(SocketError::Foreign(_))));
        assert!(path.exists() && !folder.path().join("a.sock.lock").exists());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "data").unwrap();
        File::create(folder.path().join("a.sock.lock")).unwrap();
        assert!(matches!(Listening::bind(&path, None), Err(SocketError::Foreign(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_path_beyond_sun_path_is_refused() {
        let path = PathBuf::from(format!("/{}", "x".repeat(107)));
        assert!(matches!(check_path(&path), Err(SocketError::PathTooLong { len: 108, .. })));
    }
}
