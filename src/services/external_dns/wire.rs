//! Zone transfers and dynamic updates as messages, signed by TSIG (RFC 5936, RFC 2136, RFC 8945), over TCP.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode, UpdateMessage};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigVerifier, TSigner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::plan::{Cause, Change, Have, Text, mark};
use super::spec::{Algorithm, ExternalDnsSpec, TsigSpec};

/// Records of a zone that are read at most.
const RECORDS_MAX: usize = 1 << 20;
/// Octets of the file of a secret.
const SECRET_LEN_MAX: u64 = 4096;
/// How long the server may take for a connection, and for each message.
const PATIENCE: Duration = Duration::from_secs(10);
/// How far the clocks may be apart, in seconds (RFC 8945 §10 recommends it).
const FUDGE_S: u16 = 300;

/// Why something could not be done, in a sentence.
pub type Failure = String;

/// What became of an update.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Updated {
    /// It is in the zone.
    Done,
    /// The zone was not any more what it was based on.
    Overtaken,
    /// The server does not want it or cannot do it, or it cannot be said; others may work.
    Refused(Cause, String),
}

/// A connection with the zone's server.
pub struct Connection {
    stream: TcpStream,
    signer: TSigner,
    zone: Name,
    next_id: u16,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// The secret cannot be read, or the server does not answer.
    pub async fn open(spec: &ExternalDnsSpec) -> Result<Self, Failure> {
        let signer = signer(&spec.tsig).await?;
        let zone = absolute(&spec.zone)?;
        let stream = connect(spec.server).await?;
        let next_id = uuid::Uuid::new_v4().as_u64_pair().0 as u16;
        Ok(Self { stream, signer, zone, next_id })
    }

    /// The serial number of the zone as it is (RFC 1035 §3.3.13).
    ///
    /// # Errors
    /// The server refuses, or what it sends is not what it should be.
    pub async fn serial(&mut self) -> Result<u32, Failure> {
        let mut question = Message::new(self.id(), MessageType::Query, OpCode::Query);
        question.queries.push(Query::query(self.zone.clone(), RecordType::SOA));
        let (framed, mut verifier) = self.sign(question)?;
        self.send(&framed).await?;
        let answer = self.receive(&mut verifier).await?;
        refused(&answer, "the question for the zone's SOA")?;
        let serial = answer.answers.iter().filter(|record| record.name == self.zone).find_map(serial_of);
        serial.ok_or_else(|| "the server has no SOA of the zone".to_owned())
    }

    /// What every name of the zone has, and the zone's serial number.
    ///
    /// # Errors
    /// The server refuses, or what it sends is not what it should be.
    pub async fn transfer(&mut self) -> Result<(BTreeMap<String, Have>, Option<u32>), Failure> {
        let mut question = Message::new(self.id(), MessageType::Query, OpCode::Query);
        question.queries.push(Query::query(self.zone.clone(), RecordType::AXFR));
        let (framed, mut verifier) = self.sign(question)?;
        self.send(&framed).await?;
        let (mut names, mut count, mut ends) = (BTreeMap::<String, Have>::new(), 0, 0);
        let mut serial = None;
        // The zone begins and ends with its SOA (RFC 5936 §2.2).
        while ends < 2 {
            let answer = self.receive(&mut verifier).await?;
            refused(&answer, "the transfer of the zone")?;
            if answer.answers.is_empty() {
                return Err("the server sent an empty part of the zone".to_owned());
            }
            count += answer.answers.len();
            if count > RECORDS_MAX {
                return Err(format!("the zone has more than {RECORDS_MAX} records"));
            }
            for record in answer.answers {
                ends += usize::from(record.record_type() == RecordType::SOA);
                serial = serial.or_else(|| serial_of(&record));
                let name = record.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
                note(names.entry(name).or_default(), &record, record.name == self.zone);
            }
        }
        Ok((names, serial))
    }

    /// Makes a change, all of it or nothing. `false` when the name is not as it was before.
    ///
    /// # Errors
    /// The server refuses.
    pub async fn update(&mut self, change: &Change, spec: &ExternalDnsSpec) -> Result<Updated, Failure> {
        let id = self.id();
        let signed = update(change, spec, &self.zone, id).and_then(|message| self.sign(message));
        let (framed, mut verifier) = match signed {
            Ok(signed) => signed,
            // What cannot be said is the fault of this name, not of the others.
            Err(why) => return Ok(Updated::Refused(Cause::Refused, format!("the update of {}: {why}", change.name))),
        };
        self.send(&framed).await?;
        let answer = self.receive(&mut verifier).await?;
        // The prerequisites do not hold (RFC 2136 §3.2).
        let changed = [ResponseCode::YXDomain, ResponseCode::YXRRSet, ResponseCode::NXRRSet, ResponseCode::NXDomain];
        if changed.contains(&answer.metadata.response_code) {
            return Ok(Updated::Overtaken);
        }
        Ok(match refused(&answer, &format!("the update of {}", change.name)) {
            Ok(()) => Updated::Done,
            Err(why) if answer.metadata.response_code == ResponseCode::ServFail => {
                Updated::Refused(Cause::ServerFailure, why)
            }
            Err(why) => Updated::Refused(Cause::Refused, why),
        })
    }

    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// A message as it goes to the server, and what checks the answer.
    fn sign(&self, mut message: Message) -> Result<(Vec<u8>, TSigVerifier), Failure> {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let verifier = message.finalize(&self.signer, now_s).map_err(|error| error.to_string())?;
        let verifier = verifier.ok_or("the message was not signed")?;
        let octets = message.to_vec().map_err(|error| error.to_string())?;
        let len = u16::try_from(octets.len()).map_err(|_| "the update does not fit a message".to_owned())?;
        Ok(([&len.to_be_bytes()[..], &octets].concat(), verifier))
    }

    async fn send(&mut self, framed: &[u8]) -> Result<(), Failure> {
        within("the server does not take the question", self.stream.write_all(framed)).await
    }

    async fn receive(&mut self, verifier: &mut TSigVerifier) -> Result<Message, Failure> {
        let mut prefix = [0; 2];
        within("the server does not answer", self.stream.read_exact(&mut prefix)).await?;
        let mut octets = vec![0; usize::from(u16::from_be_bytes(prefix))];
        within("the server's answer is cut off", self.stream.read_exact(&mut octets)).await?;
        match verifier.verify(&octets) {
            Ok(answer) => Ok(answer.into_message()),
            Err(error) => Err(unverified(&octets, &error.to_string())),
        }
    }
}

/// What an answer says that is not signed as it should be. A server that does not know the key says so without a signature
/// (RFC 8945 §5.2.1); it is not believed, only told.
fn unverified(octets: &[u8], error: &str) -> Failure {
    let code = Message::from_vec(octets).map(|answer| answer.metadata.response_code);
    match code {
        Ok(ResponseCode::NoError) | Err(_) => format!("the server's answer is not signed as it should be: {error}"),
        Ok(code) => format!("the server says {code}: does it know the TSIG key, with this name, algorithm and secret?"),
    }
}

fn refused(answer: &Message, what: &str) -> Result<(), Failure> {
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(()),
        code => Err(format!("the server refuses {what}: {code}")),
    }
}

async fn connect(server: SocketAddr) -> Result<TcpStream, Failure> {
    within(&format!("the server {server} cannot be reached"), TcpStream::connect(server)).await
}

async fn within<T>(what: &str, work: impl Future<Output = std::io::Result<T>>) -> Result<T, Failure> {
    match timeout(PATIENCE, work).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(format!("{what}: {error}")),
        Err(_) => Err(format!("{what} within {} s", PATIENCE.as_secs())),
    }
}

async fn signer(spec: &TsigSpec) -> Result<TSigner, Failure> {
    let file = spec.secret_file.display();
    let path = spec.secret_file.clone();
    let read = tokio::task::spawn_blocking(move || read_secret(&path)).await;
    let text = read.map_err(|error| error.to_string())?.map_err(|error| format!("{file}: {error}"))?;
    let plain: Vec<u8> = text.iter().copied().filter(|octet| !octet.is_ascii_whitespace()).collect();
    let secret = STANDARD.decode(plain).map_err(|_| format!("{file} is not a secret in base64"))?;
    if secret.len() < 16 {
        return Err(format!("{file} has {} octets of secret; at least 16 are needed", secret.len()));
    }
    let algorithm = match spec.algorithm {
        Algorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
        Algorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
        Algorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
    };
    TSigner::new(secret, algorithm, absolute(&spec.name)?, FUDGE_S).map_err(|error| error.to_string())
}

fn read_secret(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(SECRET_LEN_MAX).read_to_end(&mut text)?;
    Ok(text)
}

fn absolute(name: &str) -> Result<Name, Failure> {
    let mut absolute = Name::from_ascii(name).map_err(|error| format!("{name:?} is no name: {error}"))?;
    absolute.set_fqdn(true);
    Ok(absolute)
}

fn serial_of(record: &Record) -> Option<u32> {
    match &record.data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    }
}

fn note(have: &mut Have, record: &Record, apex: bool) {
    match &record.data {
        RData::A(address) => {
            have.a.insert(address.0);
            have.ttls.insert(record.ttl);
        }
        RData::AAAA(address) => {
            have.aaaa.insert(address.0);
            have.ttls.insert(record.ttl);
        }
        RData::TXT(text) => {
            have.texts.insert(text.txt_data.iter().map(|string| string.to_vec()).collect());
            have.text_ttl = Some(record.ttl);
        }
        _ => {
            let kind = record.record_type();
            let cut = u16::from(kind) == DNAME || (kind == RecordType::NS && !apex);
            have.cut |= cut;
            have.taken |= cut || kind == RecordType::CNAME;
        }
    }
}

/// A type without a name in this library (RFC 6672).
const DNAME: u16 = 39;

/// The update of one name. Prerequisites: A, AAAA and TXT are what they were, record by record, or not there, and there is no
/// alias (RFC 2136 §2.4).
fn update(change: &Change, spec: &ExternalDnsSpec, zone: &Name, id: u16) -> Result<Message, Failure> {
    let name = absolute(&change.name)?;
    let mut message = Message::new(id, MessageType::Query, OpCode::Update);
    let mut of_zone = Query::new();
    of_zone.set_name(zone.clone()).set_query_class(DNSClass::IN).set_query_type(RecordType::SOA);
    message.add_zone(of_zone);
    let before = &change.before;
    let sets = [
        (RecordType::A, before.a.iter().map(|address| RData::A((*address).into())).collect::<Vec<_>>()),
        (RecordType::AAAA, before.aaaa.iter().map(|address| RData::AAAA((*address).into())).collect()),
        (RecordType::TXT, before.texts.iter().map(text).collect()),
        (RecordType::CNAME, Vec::new()),
    ];
    for (kind, records) in sets {
        if records.is_empty() {
            message.add_pre_requisite(empty(&name, kind, DNSClass::NONE));
        }
        for data in records {
            message.add_pre_requisite(Record::from_rdata(name.clone(), 0, data));
        }
    }
    message.add_update(empty(&name, RecordType::A, DNSClass::ANY));
    message.add_update(empty(&name, RecordType::AAAA, DNSClass::ANY));
    for mark in &change.old_marks {
        let mut record = Record::from_rdata(name.clone(), 0, text(mark));
        record.dns_class = DNSClass::NONE;
        message.add_update(record);
    }
    if let Some(wish) = &change.after {
        let a = wish.a.iter().map(|address| RData::A((*address).into()));
        let aaaa = wish.aaaa.iter().map(|address| RData::AAAA((*address).into()));
        for data in a.chain(aaaa) {
            message.add_update(Record::from_rdata(name.clone(), spec.ttl_s, data));
        }
        // All records of a set have one time to live (RFC 2181 §5.2): that of others' TXT records stays.
        let ttl_s = before.text_ttl.unwrap_or(spec.ttl_s);
        message.add_update(Record::from_rdata(name, ttl_s, text(&mark(&spec.owner, &wish.service))));
    }
    Ok(message)
}

fn text(strings: &Text) -> RData {
    RData::TXT(TXT::from_bytes(strings.iter().map(Vec::as_slice).collect()))
}

/// A record without data: a whole set of records, or none of it.
fn empty(name: &Name, kind: RecordType, class: DNSClass) -> Record {
    let mut record = Record::update0(name.clone(), 0, kind);
    record.dns_class = class;
    record.into_record_of_rdata()
}
