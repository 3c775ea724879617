//! What is hidden from the host's kernel at the moment, remembered on disk: whoever comes after a daemon that was killed
//! cleans up behind it.

use std::path::{Path, PathBuf};

use hostweave_uplink::Error;
use hostweave_uplink::netlink::hide;
use ipnet::IpNet;

/// File under the runtime directory that names the interface.
const FILE: &str = "uplink-hidden";

/// What is hidden.
pub struct Hidden {
    file: PathBuf,
    /// Interface, VLAN and prefixes, as last installed.
    installed: Option<(String, Option<u16>, Vec<IpNet>)>,
}

impl Hidden {
    /// Nothing yet; what an earlier run hid is found by the first call.
    pub fn new(runtime_dir: &Path) -> Self {
        Self { file: runtime_dir.join(FILE), installed: None }
    }

    /// Hides these prefixes at this interface in this VLAN, or without a tag, and nothing else anywhere.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn install(&mut self, interface: &str, vlan: Option<u16>, mut prefixes: Vec<IpNet>) -> Result<(), Error> {
        prefixes.sort_unstable();
        let wanted = (interface.to_owned(), vlan, prefixes);
        if self.installed.as_ref() == Some(&wanted) {
            return Ok(());
        }
        if self.remembered().is_some_and(|before| before != interface) {
            self.remove();
        }
        // First, so that it is found whatever happens.
        if let Err(error) = std::fs::write(&self.file, interface) {
            tracing::warn!(%error, path = %self.file.display(), "what is hidden from the kernel cannot be remembered");
        }
        hide::install(interface, vlan, &wanted.2)?;
        self.installed = Some(wanted);
        Ok(())
    }

    /// The interface went away, and what was hidden there perhaps with it.
    pub fn forget(&mut self) {
        self.installed = None;
    }

    /// Hides nothing any more, what an earlier run hid included.
    pub fn remove(&mut self) {
        self.installed = None;
        let Some(interface) = self.remembered() else { return };
        match hide::remove(&interface) {
            Ok(()) => drop(std::fs::remove_file(&self.file)),
            Err(error) => tracing::warn!(%interface, %error, "what was hidden from the kernel stays hidden"),
        }
    }

    fn remembered(&self) -> Option<String> {
        std::fs::read_to_string(&self.file).ok().filter(|name| !name.is_empty())
    }
}
