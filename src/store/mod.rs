//! The embedded store: objects applied at run time and the addresses that ports were given, in one `redb` file.
//!
//! Everything is read once, at start; afterwards the daemon only writes. [`Store::commit`] returns when the change is
//! on disk, so that whatever a user was told survives a crash. A batch is written whole or not at all.
//!
//! This file does not know what objects mean: [`crate::control`] decides what is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::config::outside::{Given, ServiceAddresses};
use crate::config::{Assignment, Assignments, Kind, ObjectKey};
use crate::control::attach_ledger::Attached;
use crate::control::nat_ledger::NatLease;
use crate::fabric::balance::known::Drained;
use crate::fabric::balance::remembered::Remembered;

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "store.redb";

/// Layout of the tables. A file with a larger number was written by a newer hostweave.
const LAYOUT: u64 = 1;

/// Octets of `redb`'s page cache: everything is held in memory anyway, by the objects themselves.
const CACHE_BYTES: usize = 4 << 20;

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const ASSIGNMENTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("assignments");
/// Made when it is first needed: a file of before has none.
const SERVICES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("service-addresses");
/// The backends that were drained, as one list. Made when it is first needed.
const DRAINED: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("drained-backends");
/// What is remembered of the backends of Services, by `namespace/name`. Made when it is first needed.
const BACKENDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("service-backends");
/// The table of a ledger: entries by number. Made when it is first needed.
pub type LedgerTable = TableDefinition<'static, u64, &'static [u8]>;
/// Who had which L4 ports of NAT addresses.
pub const NAT_LEASES: LedgerTable = TableDefinition::new("nat-leases");
/// Which port had which attached address.
pub const ATTACHED: LedgerTable = TableDefinition::new("attached-addresses");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The only key of its table.
const DRAINED_KEY: &str = "all";

/// An object that was applied at run time.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoredObject {
    /// Its identity; an object that is deleted and made again has another.
    pub uid: Uuid,
    /// Revision of its last change.
    pub revision: u64,
    /// As it was written.
    pub object: Value,
}

/// Everything that the store holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Contents {
    /// Objects by key.
    pub objects: BTreeMap<ObjectKey, StoredObject>,
    /// Addresses by port.
    pub assignments: Assignments,
    /// Addresses by Service.
    pub services: ServiceAddresses,
    /// Backends that were drained.
    pub drained: BTreeSet<Drained>,
    /// What is remembered of backends, by Service.
    pub backends: BTreeMap<String, Remembered>,
    /// Who had which L4 ports of NAT addresses, by number.
    pub nat_leases: BTreeMap<u64, NatLease>,
    /// Which port had which attached address, by number.
    pub attached: BTreeMap<u64, Attached>,
    /// Revision of the last change.
    pub revision: u64,
}

/// One change, written whole or not at all.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Batch {
    /// Objects to write.
    pub objects: Vec<(ObjectKey, StoredObject)>,
    /// Objects to remove.
    pub objects_gone: Vec<ObjectKey>,
    /// Assignments to write.
    pub assignments: Vec<(ObjectKey, Assignment)>,
    /// Assignments to remove.
    pub assignments_gone: Vec<ObjectKey>,
    /// Addresses of Services to write.
    pub services: Vec<(ObjectKey, Vec<Given>)>,
    /// Addresses of Services to remove.
    pub services_gone: Vec<ObjectKey>,
    /// All backends that are drained, where that is different.
    pub drained: Option<BTreeSet<Drained>>,
    /// What is remembered of the backends of Services; `None` for nothing.
    pub backends: Vec<(Arc<str>, Option<Remembered>)>,
    /// Revision after this change.
    pub revision: u64,
}

impl Batch {
    /// Whether nothing but the revision would be written.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
            && self.objects_gone.is_empty()
            && self.assignments.is_empty()
            && self.assignments_gone.is_empty()
            && self.services.is_empty()
            && self.services_gone.is_empty()
            && self.drained.is_none()
            && self.backends.is_empty()
    }
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened: missing permission, another daemon, or damage.
    #[error("cannot open the store {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: redb::DatabaseError,
    },
    /// The file was written by a newer version.
    #[error("the store {} has layout {found}; this version knows layouts up to {LAYOUT}: use a newer hostweave", path.display())]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u64,
    },
    /// A record cannot be understood.
    #[error("record {key:?} of the store is damaged")]
    Record {
        /// Its key.
        key: String,
        /// Cause, where there is one.
        source: Option<serde_json::Error>,
    },
    /// Reading or writing failed.
    #[error("the store cannot be read or written")]
    Access(#[source] Box<redb::Error>),
}

/// Every error of `redb` while reading or writing is the same to the caller.
fn access<E: Into<redb::Error>>(error: E) -> Error {
    Error::Access(Box::new(error.into()))
}

/// The open store. One process at a time: `redb` locks the file.
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens or makes the store in `state_dir`, and reads all of it.
    ///
    /// # Errors
    /// The file cannot be used, or holds something that this version does not understand.
    pub fn open(state_dir: &Path) -> Result<(Self, Contents), Error> {
        let path = state_dir.join(FILE_NAME);
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(&path);
        let database = opened.map_err(|source| Error::Open { path: path.clone(), source })?;
        Self::with(database, path)
    }

    /// A store that is gone with the process.
    ///
    /// # Errors
    /// None that is known of; `redb` reports errors of its backend here.
    pub fn in_memory() -> Result<(Self, Contents), Error> {
        let backend = redb::backends::InMemoryBackend::new();
        let path = PathBuf::from("memory");
        let opened = Database::builder().create_with_backend(backend);
        Self::with(opened.map_err(|source| Error::Open { path: path.clone(), source })?, path)
    }

    fn with(database: Database, path: PathBuf) -> Result<(Self, Contents), Error> {
        let store = Self { database };
        let contents = store.read(path)?;
        Ok((store, contents))
    }

    fn read(&self, path: PathBuf) -> Result<Contents, Error> {
        let transaction = self.database.begin_read().map_err(access)?;
        let mut contents = Contents::default();
        match transaction.open_table(META) {
            Ok(meta) => {
                let number = |key| Ok::<_, Error>(meta.get(key).map_err(access)?.map_or(0, |value| value.value()));
                let found = number("layout")?;
                if found > LAYOUT {
                    return Err(Error::Layout { path, found });
                }
                contents.revision = number("revision")?;
            }
            // A new file: the first commit makes the tables.
            Err(TableError::TableDoesNotExist(_)) => {
                contents.read_ledgers(&transaction)?;
                return Ok(contents);
            }
            Err(error) => return Err(access(error)),
        }
        contents.objects = records(&transaction.open_table(OBJECTS).map_err(access)?)?;
        contents.assignments = records(&transaction.open_table(ASSIGNMENTS).map_err(access)?)?;
        match transaction.open_table(SERVICES) {
            Ok(services) => contents.services = records(&services)?,
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(access(error)),
        }
        match transaction.open_table(DRAINED) {
            Ok(table) => {
                if let Some(list) = table.get(DRAINED_KEY).map_err(access)? {
                    let damaged = |error| Error::Record { key: DRAINED_KEY.to_owned(), source: Some(error) };
                    contents.drained = serde_json::from_slice(list.value()).map_err(damaged)?;
                }
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(access(error)),
        }
        match transaction.open_table(BACKENDS) {
            Ok(table) => contents.backends = backends(&table)?,
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(access(error)),
        }
        contents.read_ledgers(&transaction)?;
        Ok(contents)
    }

    /// Writes entries of a ledger and removes others; when this returns, it is on disk.
    ///
    /// # Errors
    /// The disk is full or failing. Nothing is written then.
    pub fn write_ledger<E: Serialize>(
        &self,
        table: LedgerTable,
        put: &BTreeMap<u64, E>,
        gone: &[u64],
    ) -> Result<(), Error> {
        let mut transaction = self.database.begin_write().map_err(access)?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(table).map_err(access)?;
            for (number, entry) in put {
                let damaged = |error| Error::Record { key: number.to_string(), source: Some(error) };
                table.insert(number, &*serde_json::to_vec(entry).map_err(damaged)?).map_err(access)?;
            }
            for number in gone {
                table.remove(number).map_err(access)?;
            }
        }
        transaction.commit().map_err(access)
    }

    /// Writes a batch; when this returns, it is on disk.
    ///
    /// # Errors
    /// The disk is full or failing. Nothing of the batch is written then.
    pub fn commit(&self, batch: &Batch) -> Result<(), Error> {
        let mut transaction = self.database.begin_write().map_err(access)?;
        // After a crash the file is ready at once: guests wait for their switch.
        transaction.set_quick_repair(true);
        {
            let mut objects = transaction.open_table(OBJECTS).map_err(access)?;
            for (key, object) in &batch.objects {
                objects.insert(&*key_text(key), &*encode(key, object)?).map_err(access)?;
            }
            for key in &batch.objects_gone {
                objects.remove(&*key_text(key)).map_err(access)?;
            }
            let mut assignments = transaction.open_table(ASSIGNMENTS).map_err(access)?;
            for (key, assignment) in &batch.assignments {
                assignments.insert(&*key_text(key), &*encode(key, assignment)?).map_err(access)?;
            }
            for key in &batch.assignments_gone {
                assignments.remove(&*key_text(key)).map_err(access)?;
            }
            let mut services = transaction.open_table(SERVICES).map_err(access)?;
            for (key, given) in &batch.services {
                services.insert(&*key_text(key), &*encode(key, given)?).map_err(access)?;
            }
            for key in &batch.services_gone {
                services.remove(&*key_text(key)).map_err(access)?;
            }
            if let Some(drained) = &batch.drained {
                let damaged = |error| Error::Record { key: DRAINED_KEY.to_owned(), source: Some(error) };
                let list = serde_json::to_vec(drained).map_err(damaged)?;
                transaction.open_table(DRAINED).map_err(access)?.insert(DRAINED_KEY, &*list).map_err(access)?;
            }
            if !batch.backends.is_empty() {
                write_backends(&mut transaction.open_table(BACKENDS).map_err(access)?, &batch.backends)?;
            }
            let mut meta = transaction.open_table(META).map_err(access)?;
            meta.insert("layout", LAYOUT).map_err(access)?;
            meta.insert("revision", batch.revision).map_err(access)?;
        }
        transaction.commit().map_err(access)
    }
}

impl Contents {
    fn read_ledgers(&mut self, transaction: &ReadTransaction) -> Result<(), Error> {
        self.nat_leases = ledger(transaction, NAT_LEASES)?;
        self.attached = ledger(transaction, ATTACHED)?;
        Ok(())
    }
}

/// A ledger. What is damaged is left out: it is a log, and no reason not to start.
fn ledger<E: DeserializeOwned>(transaction: &ReadTransaction, table: LedgerTable) -> Result<BTreeMap<u64, E>, Error> {
    let mut entries = BTreeMap::new();
    let name = table.name().to_owned();
    let table = match transaction.open_table(table) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(entries),
        Err(error) => return Err(access(error)),
    };
    for entry in table.iter().map_err(access)? {
        let (number, entry) = entry.map_err(access)?;
        match serde_json::from_slice(entry.value()) {
            Ok(entry) => drop(entries.insert(number.value(), entry)),
            Err(error) => tracing::warn!(%error, "entry {} of {name} in the store is damaged", number.value()),
        }
    }
    Ok(entries)
}

/// All records of a table, each understood or an error.
fn records<T: DeserializeOwned>(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<BTreeMap<ObjectKey, T>, Error> {
    let mut records = BTreeMap::new();
    for entry in table.iter().map_err(access)? {
        let (key, value) = entry.map_err(access)?;
        let text = key.value();
        let damaged = |source| Error::Record { key: text.to_owned(), source };
        let key = parse_key(text).ok_or_else(|| damaged(None))?;
        let value = serde_json::from_slice(value.value()).map_err(|error| damaged(Some(error)))?;
        records.insert(key, value);
    }
    Ok(records)
}

/// What is damaged is left out: backends are checked and ejected anew, and guests wait for their switch.
fn backends(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<BTreeMap<String, Remembered>, Error> {
    let mut all = BTreeMap::new();
    for entry in table.iter().map_err(access)? {
        let (key, value) = entry.map_err(access)?;
        match serde_json::from_slice(value.value()) {
            Ok(remembered) => drop(all.insert(key.value().to_owned(), remembered)),
            Err(error) => {
                tracing::warn!(%error, "what the store has of the backends of Service {} is damaged", key.value());
            }
        }
    }
    Ok(all)
}

fn write_backends(
    table: &mut redb::Table<'_, &'static str, &'static [u8]>,
    backends: &[(Arc<str>, Option<Remembered>)],
) -> Result<(), Error> {
    for (name, remembered) in backends {
        match remembered {
            Some(remembered) => {
                let damaged = |error| Error::Record { key: name.to_string(), source: Some(error) };
                let value = serde_json::to_vec(remembered).map_err(damaged)?;
                table.insert(&**name, &*value).map_err(access)?;
            }
            None => drop(table.remove(&**name).map_err(access)?),
        }
    }
    Ok(())
}

fn encode<T: Serialize>(key: &ObjectKey, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Record { key: key_text(key), source: Some(error) })
}

/// `Port/shop/web-0`, `Network//default`. No name contains a slash.
fn key_text(key: &ObjectKey) -> String {
    format!("{}/{}/{}", key.kind, key.namespace.as_deref().unwrap_or_default(), key.name)
}

fn parse_key(text: &str) -> Option<ObjectKey> {
    let mut parts = text.splitn(3, '/');
    let kind: Kind = parts.next()?.parse().ok()?;
    let namespace = parts.next()?;
    let name = parts.next().filter(|name| !name.is_empty())?;
    (namespace.is_empty() != kind.is_namespaced()).then(|| ObjectKey::new(kind, Some(namespace), name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::outside::GivenOf;

    fn assignment() -> Assignment {
        Assignment {
            uid: Uuid::from_u128(7),
            network: "default".to_owned(),
            mac: "02:00:0a:40:00:0a".parse().unwrap(),
            v4: Some([10, 64, 0, 10].into()),
            v6: None,
            learned: vec!["2001:db8::5".parse().unwrap()],
        }
    }

    fn service() -> (ObjectKey, Vec<Given>) {
        let given = ["203.0.113.7", "2001:db8::7"]
            .map(|address| Given { address: address.parse().unwrap(), of: GivenOf::Pool("p".to_owned()) });
        (ObjectKey::new(Kind::Service, Some("shop"), "ip"), given.to_vec())
    }

    fn drained() -> Drained {
        Drained { backend: "shop/web-0".to_owned(), service: None }
    }

    fn remembered() -> Remembered {
        let text = r#"{"vni": 7, "left": [{"name": "http", "proto": 6, "first": 80, "last": 80, "endpoints": [{"name": "shop/a",
            "port": null, "address": "2001:db8::1", "l4": 8080, "weight": 1}]}], "ejected": [{"address": "10.0.0.1", "l4": 80, "proto": 6,
            "until": {"secs_since_epoch": 1700000000, "nanos_since_epoch": 5}, "times": 2, "reason": "r"}]}"#;
        serde_json::from_str(text).unwrap()
    }

    fn batch() -> Batch {
        let object =
            StoredObject { uid: Uuid::from_u128(1), revision: 3, object: serde_json::json!({"kind": "Network"}) };
        Batch {
            objects: vec![(ObjectKey::new(Kind::Network, None, "default"), object)],
            assignments: vec![(ObjectKey::port("shop", "web-0"), assignment())],
            services: vec![service()],
            drained: Some([drained()].into()),
            backends: vec![("shop/web".into(), Some(remembered()))],
            revision: 3,
            ..Batch::default()
        }
    }

    #[test]
    fn what_was_committed_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let (store, contents) = Store::open(dir.path()).unwrap();
        assert_eq!(contents, Contents::default());
        store.commit(&batch()).unwrap();
        drop(store);

        let (store, contents) = Store::open(dir.path()).unwrap();
        assert_eq!(contents.revision, 3);
        assert_eq!(contents.objects.into_iter().collect::<Vec<_>>(), batch().objects);
        assert_eq!(contents.assignments.into_iter().collect::<Vec<_>>(), batch().assignments);
        assert_eq!(contents.services.into_iter().collect::<Vec<_>>(), batch().services);
        assert_eq!(Some(contents.drained), batch().drained);
        assert_eq!(contents.backends, [("shop/web".to_owned(), remembered())].into());

        let gone = Batch {
            objects_gone: vec![ObjectKey::new(Kind::Network, None, "default")],
            assignments_gone: vec![ObjectKey::port("shop", "web-0")],
            services_gone: vec![service().0],
            drained: Some(BTreeSet::new()),
            backends: vec![("shop/web".into(), None)],
            revision: 4,
            ..Batch::default()
        };
        store.commit(&gone).unwrap();
        drop(store);
        let (_, contents) = Store::open(dir.path()).unwrap();
        assert_eq!(contents, Contents { revision: 4, ..Contents::default() });
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).unwrap();
        let error = Store::open(dir.path()).err().unwrap();
        assert!(matches!(error, Error::Open { .. }), "{error}");
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path()).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("layout", LAYOUT + 1).unwrap();
        transaction.commit().unwrap();
        drop(store);
        let error = Store::open(dir.path()).err().unwrap();
        assert!(matches!(error, Error::Layout { found, .. } if found == LAYOUT + 1), "{error}");
    }

    #[test]
    fn a_damaged_record_is_named() {
        let (store, _) = Store::in_memory().unwrap();
        store.commit(&batch()).unwrap();
        let transaction = store.database.begin_write().unwrap();
        transaction.open_table(OBJECTS).unwrap().insert("Network//default", &b"{"[..]).unwrap();
        transaction.commit().unwrap();
        let error = store.read(PathBuf::new()).unwrap_err();
        assert!(error.to_string().contains("Network//default"), "{error}");
    }

    /// Of a later version, too: it may have put more into it.
    #[test]
    fn damaged_backends_are_no_reason_not_to_start() {
        let (store, _) = Store::in_memory().unwrap();
        store.commit(&batch()).unwrap();
        let transaction = store.database.begin_write().unwrap();
        for (name, text) in [("shop/a", "{"), ("shop/z", r#"{"vni": 7, "left": [], "ejected": [], "more": 1}"#)] {
            transaction.open_table(BACKENDS).unwrap().insert(name, text.as_bytes()).unwrap();
        }
        transaction.commit().unwrap();
        let contents = store.read(PathBuf::new()).unwrap();
        assert_eq!(contents.backends, [("shop/web".to_owned(), remembered())].into());
    }

    #[test]
    fn keys_round_trip_and_nonsense_is_refused() {
        for key in [ObjectKey::port("shop", "web-0.a"), ObjectKey::new(Kind::Network, None, "default")] {
            assert_eq!(parse_key(&key_text(&key)), Some(key));
        }
        for bad in ["", "Port", "Port/shop", "Port//x", "Network/shop/x", "Nothing//x", "Port/shop/"] {
            assert_eq!(parse_key(bad), None, "{bad}");
        }
    }
}
