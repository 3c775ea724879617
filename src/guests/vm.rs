//! A Linux guest in QEMU, on a port of the daemon, and the channel through which it is told what to do.
//!
//! Kernel and initramfs are those of the tests (`tests/qemu/setup.sh`). The first process in the guest serves one shell
//! per virtio-serial port (`tests/qemu/guest/init`): a request is `ID TIMEOUT_S BASE64_SCRIPT`, the answer
//! `ID EXIT_CODE BASE64_STDOUT BASE64_STDERR`, a line each, `-` for nothing.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::board::Board;
use super::control::Control;

/// The VMM.
const QEMU: &str = "qemu-system-x86_64";

/// Where the pieces are, for those who keep them elsewhere.
const IMAGES_VARIABLE: &str = "HOSTWEAVE_QEMU_GUEST";

/// Shells in each guest.
const CHANNELS: usize = 2;

/// What the kernel is told: no time lost on checks that an emulated machine does not need.
const KERNEL_OPTIONS: &str =
    "console=ttyS0 loglevel=6 panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable cryptomgr.notests";

/// How long QEMU may take to open its sockets.
const QEMU_TIMEOUT: Duration = Duration::from_secs(20);

/// What executes the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// The processor, through the kernel.
    Kvm,
    /// QEMU itself.
    Tcg,
}

impl Accelerator {
    /// Those worth trying, the fastest first: a `/dev/kvm` that is there may still not work.
    pub fn candidates() -> Vec<Self> {
        let kvm = File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if kvm { vec![Self::Kvm, Self::Tcg] } else { vec![Self::Tcg] }
    }

    /// As QEMU calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// How long a guest may take to boot.
    pub fn boot_timeout(self) -> Duration {
        match self {
            Self::Kvm => Duration::from_secs(5),
            Self::Tcg => Duration::from_secs(180),
        }
    }

    fn options(self) -> [&'static str; 4] {
        let cpu = if self == Self::Kvm { "host" } else { "Nehalem" };
        ["-accel", self.name(), "-cpu", cpu]
    }
}

/// Kernel and initramfs of the guests.
#[derive(Clone, Debug)]
pub struct Images(PathBuf);

impl Images {
    /// Looks where `tests/qemu/setup.sh` puts them.
    ///
    /// # Errors
    /// They are not there, or QEMU is not; the error says what to run.
    pub fn find() -> anyhow::Result<Self> {
        let found = Command::new(QEMU).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            bail!("{QEMU} is not installed; run: sudo apt install qemu-system-x86");
        }
        let built = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("qemu-guest"));
        let given = std::env::var_os(IMAGES_VARIABLE).map(PathBuf::from);
        let places: Vec<PathBuf> = match given {
            Some(given) => vec![given],
            None => std::iter::once(PathBuf::from("target/qemu-guest")).chain(built()).collect(),
        };
        let complete = |place: &&PathBuf| place.join("vmlinux").exists() && place.join("initramfs.cpio").exists();
        match places.iter().find(complete) {
            Some(place) => Ok(Self(fs::canonicalize(place)?)),
            None => bail!(
                "there is no guest kernel in {}; in the sources of hostweave run: tests/qemu/setup.sh \
                 (once, as root if QEMU 10 is not installed), or set {IMAGES_VARIABLE}",
                places[0].display()
            ),
        }
    }
}

/// A running guest.
pub struct Vm {
    name: String,
    child: Child,
    folder: PathBuf,
    channels: Vec<Channel>,
}

impl Vm {
    /// Starts QEMU with a card on port `name`, exactly as `port attach-args` says.
    ///
    /// # Errors
    /// QEMU does not start; the error says what it said.
    pub fn launch(
        name: &str,
        control: &Control,
        images: &Images,
        accelerator: Accelerator,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let mut wanted = control.named(name);
        wanted["vmm"] = json!("qemu");
        let text = control.call("port.attachArgs", wanted)?["text"].take();
        let attach = words(text.as_str().unwrap_or_default())?;
        let folder = folder.join(format!("{name}-{}", accelerator.name()));
        fs::create_dir_all(&folder)?;
        let log = File::create(folder.join("qemu.log"))?;
        let path = |file: &str| folder.join(file).display().to_string();
        let mut command = Command::new(QEMU);
        command.args(["-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "q35"]);
        command.args(accelerator.options()).args(attach);
        command.arg("-kernel").arg(images.0.join("vmlinux")).arg("-initrd").arg(images.0.join("initramfs.cpio"));
        command.args(["-append", KERNEL_OPTIONS, "-device", "virtio-serial-pci", "-serial", "chardev:con"]);
        command.args(["-chardev", &format!("file,id=con,path={}", path("console.log"))]);
        for i in 0..CHANNELS {
            let socket = path(&format!("ctl{i}"));
            command.args(["-chardev", &format!("socket,id=ctl{i},path={socket},server=on,wait=off")]);
            command.args(["-device", &format!("virtserialport,chardev=ctl{i},name=ctl{i}")]);
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let child = child.with_context(|| format!("starting {QEMU}"))?;
        Ok(Self { name: name.to_owned(), child, folder, channels: Vec::new() })
    }

    /// Waits until every shell of the guest is there; may be called again when the time was too short.
    ///
    /// # Errors
    /// It takes longer than `timeout`, or QEMU ends.
    pub fn wait_ready(&mut self, board: &Board, timeout: Duration) -> anyhow::Result<()> {
        for i in self.channels.len()..CHANNELS {
            let socket = self.folder.join(format!("ctl{i}"));
            let stream = board.wait("QEMU opens its sockets", QEMU_TIMEOUT, || {
                if self.ended() {
                    bail!("{QEMU} ended: {}", tail(&self.folder.join("qemu.log")));
                }
                Ok(UnixStream::connect(&socket).ok())
            })?;
            self.channels.push(Channel::new(stream)?);
        }
        let end = Instant::now() + timeout;
        for channel in self.channels.iter_mut().filter(|channel| !channel.ready) {
            let line = channel.line(board, end).with_context(|| format!("{} does not boot", self.name))?;
            channel.ready = line.starts_with("READY");
            if !channel.ready {
                bail!("{} says {line:?} instead of READY", self.name);
            }
        }
        Ok(())
    }

    /// Whether QEMU has ended.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// What the guest's console said last.
    pub fn console(&self) -> String {
        tail(&self.folder.join("console.log"))
    }

    /// Starts a script in shell `channel`; [`Vm::finish`] waits for it.
    ///
    /// # Errors
    /// The guest is gone.
    pub fn start(&mut self, channel: usize, script: &str, limit: Duration) -> anyhow::Result<()> {
        let channel = self.channels.get_mut(channel).context("a channel of the guest")?;
        channel.request += 1;
        channel.limit = limit;
        let line = format!("{} {} {}\n", channel.request, limit.as_secs().max(1), BASE64_STANDARD.encode(script));
        channel.stream.get_mut().write_all(line.as_bytes()).with_context(|| format!("{} is gone", self.name))
    }

    /// Waits for the script that runs in shell `channel`; returns what it printed.
    ///
    /// # Errors
    /// It failed; the error says what it printed.
    pub fn finish(&mut self, board: &Board, channel: usize) -> anyhow::Result<String> {
        let channel = self.channels.get_mut(channel).context("a channel of the guest")?;
        let end = Instant::now() + channel.limit + Duration::from_secs(30);
        loop {
            let line = channel.line(board, end).with_context(|| format!("{} does not answer", self.name))?;
            let Some((number, answer)) = line.split_once(' ') else { continue };
            if number == channel.request.to_string() {
                let (code, stdout, stderr) =
                    parse_answer(answer).with_context(|| format!("{}: {line:?}", self.name))?;
                if code != 0 {
                    bail!("{}: exit code {code}: {} {}", self.name, stdout.trim(), stderr.trim());
                }
                return Ok(stdout);
            }
        }
    }

    /// Runs a script in the guest; returns what it printed.
    ///
    /// # Errors
    /// As for [`Vm::finish`].
    pub fn sh(&mut self, board: &Board, script: &str, limit: Duration) -> anyhow::Result<String> {
        self.start(0, script, limit)?;
        self.finish(board, 0)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One shell in the guest.
struct Channel {
    stream: BufReader<UnixStream>,
    partial: Vec<u8>,
    /// Whether its greeting came.
    ready: bool,
    request: u64,
    limit: Duration,
}

impl Channel {
    fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self {
            stream: BufReader::new(stream),
            partial: Vec::new(),
            ready: false,
            request: 0,
            limit: Duration::ZERO,
        })
    }

    fn line(&mut self, board: &Board, end: Instant) -> anyhow::Result<String> {
        loop {
            match self.stream.read_until(b'\n', &mut self.partial) {
                Ok(0) => bail!("QEMU ended the connection"),
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let line = std::mem::take(&mut self.partial);
                    return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                }
                Err(error) => return Err(error.into()),
            }
            if board.stopped() {
                bail!("stopped");
            }
            if Instant::now() > end {
                bail!("nothing came in time");
            }
        }
    }
}

/// Exit code, standard output and standard error.
fn parse_answer(answer: &str) -> anyhow::Result<(i32, String, String)> {
    let text = |field: Option<&str>| -> anyhow::Result<String> {
        match field.context("a field is missing")? {
            "-" => Ok(String::new()),
            encoded => Ok(String::from_utf8_lossy(&BASE64_STANDARD.decode(encoded)?).into_owned()),
        }
    };
    let mut fields = answer.split(' ');
    let code = fields.next().unwrap_or_default().parse().context("an exit code")?;
    Ok((code, text(fields.next())?, text(fields.next())?))
}

/// The words of a command line that was written for a shell.
fn words(text: &str) -> anyhow::Result<Vec<String>> {
    if text.contains(['\'', '"']) {
        bail!("the folder for temporary files (TMPDIR) must have a name without spaces and quotes");
    }
    Ok(text.replace("\\\n", " ").split_whitespace().map(str::to_owned).collect())
}

/// The last line of a file.
fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing yet");
    last.chars().filter(|c| !c.is_control()).take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_the_guest_are_read() {
        let answer = format!("3 {} -", BASE64_STANDARD.encode("out\n"));
        assert_eq!(parse_answer(&answer).unwrap(), (3, "out\n".to_owned(), String::new()));
        for bad in ["", "x - -", "0 -", "0 *** -"] {
            assert!(parse_answer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn attach_args_become_words() {
        assert_eq!(words("-a b,c=/d \\\n-e f\n").unwrap(), ["-a", "b,c=/d", "-e", "f"]);
        assert!(words("-a 'b c'").is_err());
    }

    #[test]
    fn lines_that_come_in_pieces_are_put_together() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours).unwrap();
        let board = Board::new("test", true);
        let writer = std::thread::spawn(move || {
            theirs.write_all(b"REA").unwrap();
            std::thread::sleep(Duration::from_millis(250));
            theirs.write_all(b"DY 1\nnext\n").unwrap();
        });
        let end = Instant::now() + Duration::from_secs(10);
        assert_eq!(channel.line(&board, end).unwrap(), "READY 1");
        assert_eq!(channel.line(&board, end).unwrap(), "next");
        writer.join().unwrap();
        assert!(channel.line(&board, end).is_err(), "the other side is gone");
    }
}
