//! `hostweave capture`: packets of ports as pcapng (draft-ietf-opsawg-pcapng), into a file, into Wireshark, or as lines.
//!
//! One interface block a port, the direction in `epb_flags`, verdict and rule as the packet's comment, and what was lost in
//! the statistics block at the end. Directions are the switch's: what a guest sends is inbound.

use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};
use serde_json::{Value, json};

use super::Session;
use super::failure::{Failure, code};
use super::output::{self, cell, hint, printable};
use crate::observe::time::rfc3339;

/// Arguments of `capture`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Ports: NAME or NAMESPACE/NAME
    #[arg(required = true, value_name = "PORT")]
    ports: Vec<String>,
    /// A pcapng file to write, or - for a pipe, as in: -w - | wireshark -k -i -
    #[arg(short, long, value_name = "FILE.pcapng|-")]
    write: Option<PathBuf>,
    /// Also packets that are dropped, or with =only nothing else
    #[arg(long, value_enum, value_name = "WHICH", num_args = 0..=1, require_equals = true, default_missing_value = "also")]
    drops: Option<Drops>,
    /// End after so many packets
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Octets of each packet
    #[arg(short, long, value_name = "OCTETS", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    snaplen: Option<u32>,
}

/// Which dropped packets.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Drops {
    /// With the others.
    Also,
    /// Alone.
    Only,
}

/// Captures until it is interrupted, or has what it was to get.
///
/// # Errors
/// There is no such port, the file cannot be written, or the connection breaks.
pub fn run(session: &Session, args: &Args) -> Result<(), Failure> {
    let mut client = session.connect()?;
    let params = json!({
        "ports": args.ports, "namespace": session.global.namespace, "drops": args.drops.is_some(), "dropsOnly": args.drops == Some(Drops::Only), "snaplen": args.snaplen,
    });
    client.call("capture.start", params)?;
    let interrupted = on_interrupt(client.stream()?)?;
    let begin = client.notification()?;
    let mut sink = Sink::open(args.write.as_deref(), &begin)?;
    if args.write.is_some() {
        hint(&format!("capturing {}; interrupt to end", args.ports.join(", ")));
    }
    let (mut captured, mut lost) = (0, 0);
    while args.count.is_none_or(|count| captured < count) {
        let batch = match client.notification() {
            Ok(batch) => batch,
            Err(_) if interrupted.load(Ordering::Relaxed) => break,
            Err(failure) => {
                sink.end(lost)?;
                return Err(failure);
            }
        };
        lost = batch["lost"].as_u64().unwrap_or(lost);
        for packet in batch["packets"].as_array().into_iter().flatten() {
            if args.count.is_some_and(|count| captured >= count) {
                break;
            }
            if !sink.packet(packet)? {
                return Ok(());
            }
            captured += 1;
        }
        if !sink.flush()? || batch["ended"] == true {
            break;
        }
    }
    sink.end(lost)?;
    let what =
        if lost == 0 { String::new() } else { format!(", {lost} lost: they came faster than they were fetched") };
    hint(&format!("{captured} packets captured{what}"));
    Ok(())
}

/// Has an interrupt shut the connection down, so that whoever waits for packets goes on. Returns whether there was one.
fn on_interrupt(stream: UnixStream) -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            flag.store(true, Ordering::Relaxed);
            // The reader sees the end of the connection.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        });
    });
    Ok(interrupted)
}

/// Where packets go.
enum Sink {
    Lines { ports: Vec<String> },
    Pcapng { writer: PcapNgWriter<Box<dyn Write>>, last: u64, per_port: Vec<u64> },
}

impl Sink {
    fn open(path: Option<&Path>, begin: &Value) -> Result<Self, Failure> {
        let ports = begin["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(path) = path else {
            return Ok(Sink::Lines { ports: ports.iter().map(|port| cell(port, "/port")).collect() });
        };
        let out: Box<dyn Write> = if path == Path::new("-") {
            Box::new(BufWriter::new(std::io::stdout()))
        } else {
            let file = std::fs::File::create(path)
                .map_err(|error| Failure::new(code::NEGATIVE, format!("{}: {error}", path.display())))?;
            Box::new(BufWriter::new(file))
        };
        let mut writer = PcapNgWriter::with_section_header(out, section()).map_err(failed)?;
        for port in ports {
            writer.write_pcapng_block(interface(port, begin["snaplen"].as_u64().unwrap_or(0))).map_err(failed)?;
        }
        let mut sink = Sink::Pcapng { writer, last: 0, per_port: vec![0; ports.len()] };
        // Wireshark shows the interfaces before the first packet comes.
        sink.flush()?;
        Ok(sink)
    }

    /// `false` when nobody reads any more.
    fn packet(&mut self, packet: &Value) -> Result<bool, Failure> {
        let place = packet["port"].as_u64().unwrap_or(0);
        let at = packet["at"].as_u64().unwrap_or(0);
        match self {
            Sink::Lines { ports } => {
                output::print(&line(ports.get(place as usize).map_or("-", String::as_str), packet)).map(|()| true)
            }
            Sink::Pcapng { writer, last, per_port } => {
                *last = at;
                if let Some(count) = per_port.get_mut(place as usize) {
                    *count += 1;
                }
                alive(writer.write_pcapng_block(block(packet, place as u32)?).map(drop))
            }
        }
    }

    fn flush(&mut self) -> Result<bool, Failure> {
        match self {
            Sink::Lines { .. } => Ok(true),
            Sink::Pcapng { writer, .. } => alive(writer.get_mut().flush().map_err(PcapError::IoError)),
        }
    }

    /// Writes what was lost. It cannot be said of which port: it counts for the first.
    fn end(&mut self, lost: u64) -> Result<(), Failure> {
        let Sink::Pcapng { writer, last, per_port } = self else { return Ok(()) };
        for (interface_id, received) in (0..).zip(per_port.iter()) {
            let lost = if interface_id == 0 { lost } else { 0 };
            let options =
                vec![InterfaceStatisticsOption::IsbIfRecv(received + lost), InterfaceStatisticsOption::IsbIfDrop(lost)];
            let block = InterfaceStatisticsBlock { interface_id, timestamp: *last, options };
            if !alive(writer.write_pcapng_block(block).map(drop))? {
                return Ok(());
            }
        }
        self.flush().map(drop)
    }
}

/// `false` when nobody reads any more, which is no failure: Wireshark was closed.
fn alive(result: Result<(), PcapError>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(PcapError::IoError(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

fn failed(error: PcapError) -> Failure {
    Failure::new(code::NEGATIVE, format!("the capture cannot be written: {error}"))
}

/// In network order: the timestamp of a statistics block is two words, upper first, which `pcap-file` writes as one number.
fn section() -> SectionHeaderBlock<'static> {
    let application = format!("hostweave {}", env!("CARGO_PKG_VERSION"));
    SectionHeaderBlock {
        endianness: Endianness::Big,
        options: vec![SectionHeaderOption::UserApplication(Cow::Owned(application))],
        ..SectionHeaderBlock::default()
    }
}

fn interface(port: &Value, snaplen: u64) -> InterfaceDescriptionBlock<'static> {
    /// 10^-9 s.
    const NANOSECONDS: u8 = 9;
    let mut options = vec![InterfaceDescriptionOption::IfName(Cow::Owned(cell(port, "/port")))];
    let labels = cell(port, "/labels");
    if labels != "-" {
        options.push(InterfaceDescriptionOption::IfDescription(Cow::Owned(labels)));
    }
    options.push(InterfaceDescriptionOption::IfTsResol(NANOSECONDS));
    InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: u32::try_from(snaplen).unwrap_or(u32::MAX),
        options,
    }
}

fn block(packet: &Value, interface_id: u32) -> Result<EnhancedPacketBlock<'static>, Failure> {
    /// `epb_flags`, bits 0 and 1.
    const INBOUND: u32 = 1;
    const OUTBOUND: u32 = 2;
    let octets = packet["octets"].as_str().and_then(|text| STANDARD.decode(text).ok());
    let data = octets.ok_or_else(|| Failure::new(code::INTERNAL, "the daemon's packet makes no sense"))?;
    let flags = if packet["toGuest"] == true { OUTBOUND } else { INBOUND };
    let comment = printable(&cell(packet, "/comment"));
    Ok(EnhancedPacketBlock {
        interface_id,
        timestamp: Duration::from_nanos(packet["at"].as_u64().unwrap_or(0)),
        original_len: packet["len"].as_u64().and_then(|len| u32::try_from(len).ok()).unwrap_or(u32::MAX),
        data: Cow::Owned(data),
        options: vec![EnhancedPacketOption::Comment(Cow::Owned(comment)), EnhancedPacketOption::Flags(flags)],
    })
}

/// `TIME PORT > 98 octets forwarded; …`, `>` from the guest and `<` to it.
fn line(port: &str, packet: &Value) -> String {
    let at = std::time::SystemTime::UNIX_EPOCH + Duration::from_nanos(packet["at"].as_u64().unwrap_or(0));
    let arrow = if packet["toGuest"] == true { '<' } else { '>' };
    let (len, comment) = (cell(packet, "/len"), printable(&cell(packet, "/comment")));
    format!("{} {port} {arrow} {len} octets  {comment}\n", rfc3339(at))
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.pcapng");
        let begin = json!({"snaplen": 100, "ports": [
            {"port": "shop/web-0", "labels": {"app": "web", "tier": "1"}}, {"port": "shop/db-0", "labels": {}},
        ]});
        let mut sink = Sink::open(Some(&file), &begin).unwrap();
        let at = 1_764_115_199_123_456_789_u64;
        let packet = json!({
            "at": at, "port": 1, "toGuest": true, "len": 1500, "octets": STANDARD.encode([7; 100]),
            "comment": "dropped: policy_denied",
        });
        assert!(sink.packet(&packet).unwrap());
        sink.end(3).unwrap();
        drop(sink);

        let mut reader = PcapNgReader::new(std::fs::File::open(&file).unwrap()).unwrap();
        let mut seen = Vec::new();
        while let Some(block) = reader.next_block() {
            seen.push(match block.unwrap() {
                Block::InterfaceDescription(block) => format!("{} {:?}", block.snaplen, block.options),
                Block::EnhancedPacket(block) => {
                    assert_eq!((block.timestamp, block.data.len()), (Duration::from_nanos(at), 100));
                    format!("{} {} {:?}", block.interface_id, block.original_len, block.options)
                }
                Block::InterfaceStatistics(block) => {
                    format!("{} {} {:?}", block.interface_id, block.timestamp == at, block.options)
                }
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(
            seen,
            [
                "100 [IfName(\"shop/web-0\"), IfDescription(\"app=web,tier=1\"), IfTsResol(9)]",
                "100 [IfName(\"shop/db-0\"), IfTsResol(9)]",
                "1 1500 [Comment(\"dropped: policy_denied\"), Flags(2)]",
                "0 true [IsbIfRecv(3), IsbIfDrop(3)]",
                "1 true [IsbIfRecv(1), IsbIfDrop(0)]",
            ]
        );
    }

    #[test]
    fn a_packet_as_a_line() {
        let packet = json!({"at": 0, "toGuest": false, "len": 98, "comment": "forwarded"});
        assert_eq!(line("shop/a", &packet), "1970-01-01T00:00:00.000000Z shop/a > 98 octets  forwarded\n");
    }
}
