//! The meeting point: a key-value server that one process hosts (c10d's TCPStore), and connections to it.
//!
//! Invariants:
//! 1. Every [`Store`] is a connection of its own, so that waiting on one never delays another.
//! 2. Every call returns by its limit, also when the server is stopped or cut off. After such a silence the
//!    connection is given up: later calls on it fail at once.
//! 3. The server lives exactly as long as the `Store` that [`Store::serve`] returned.

use std::cell::Cell;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::deadline::{Deadline, Late, call_within};
use crate::error::{Error, Result};
use crate::ffi::{RawStore, Thrown};

/// What a call gets beyond its own limit, for the way to the server and back.
const ROUND_TRIP: Duration = Duration::from_millis(500);

/// How long to wait before looking for the server again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// How long one address may take to answer before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// `host:port` of a store's server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A connection to the meeting point, under a prefix of its keys.
///
/// Keys are any text without NUL. `Send`, but not `Sync`: a thread that needs one takes its own, by
/// [`prefix`](Store::prefix).
#[derive(Debug)]
pub struct Store {
    pub(crate) connection: Connection,
    not_sync: PhantomData<Cell<()>>,
}

impl Store {
    /// Hosts a store on `host`, which is a name or address of this machine by which the others reach it, and
    /// connects to it. `port` 0 takes any free port; [`port`](Store::port) says which. Nothing is bound on
    /// other addresses: a name that means loopback here, as a machine's own name may, serves this machine
    /// only. `timeout` is the limit of every later call that has none of its own.
    ///
    /// # Errors
    /// [`Error::Store`] when the address cannot be bound.
    pub fn serve(host: &str, port: u16, timeout: Duration) -> Result<Self> {
        let address = Address { host: host.to_owned(), port };
        let host = host.to_owned();
        open(&address, "serve", timeout, true, move || {
            let addresses: Vec<_> = (host.as_str(), port).to_socket_addrs()?.collect();
            let listener = TcpListener::bind(&*addresses)?;
            let bound = listener.local_addr()?;
            let raw = RawStore::serve(listener.into(), &numeric(bound), timeout);
            Ok((raw.map_err(io::Error::other)?, bound.port()))
        })
    }

    /// Connects to the store at `host:port`; keeps trying until `timeout`, in case its server starts later.
    /// `timeout` is also the limit of every later call that has none of its own.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::StoreTimeout`] when there is no store by then.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self> {
        let address = Address { host: host.to_owned(), port };
        let host = host.to_owned();
        open(&address, "connect", timeout, false, move || {
            let limit = Deadline::after(timeout);
            let server = find_server(&host, port, &limit)?;
            let raw = RawStore::connect(&numeric(server), port, limit.left());
            Ok((raw.map_err(io::Error::other)?, port))
        })
    }

    /// The host given to [`serve`](Store::serve) or [`connect`](Store::connect).
    pub fn host(&self) -> &str {
        &self.connection.address.host
    }

    /// The port the server listens on.
    pub fn port(&self) -> u16 {
        self.connection.address.port
    }

    /// A new connection to the same server, whose keys all lie under `name/`.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::StoreTimeout`] when the server does not answer.
    pub fn prefix(&self, name: &str) -> Result<Self> {
        Ok(Self { connection: self.connection.under(name)?, not_sync: PhantomData })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::StoreTimeout`] when the server cannot be reached.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let value = value.to_vec();
        self.connection.call("set", &[key], move |raw, keys| raw.set(&keys[0], &value))
    }

    /// The value of a key, once it is there.
    ///
    /// # Errors
    /// [`Error::StoreTimeout`] when it is not there within `timeout`; [`Error::Store`] when the server is
    /// gone.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>> {
        let waiting = Deadline::after(timeout);
        let value =
            self.connection.call_for(timeout, "get", &[key], move |raw, keys| raw.get(&keys[0], timeout))?;
        value.ok_or_else(|| self.connection.absent("get", &[key], &waiting))
    }

    /// Waits until all the keys are there.
    ///
    /// # Errors
    /// [`Error::StoreTimeout`] when they are not there within `timeout`; [`Error::Store`] when the server is
    /// gone.
    pub fn wait(&self, keys: &[&str], timeout: Duration) -> Result<()> {
        let waiting = Deadline::after(timeout);
        let there =
            self.connection.call_for(timeout, "wait for", keys, move |raw, keys| raw.wait(keys, timeout))?;
        if there { Ok(()) } else { Err(self.connection.absent("wait for", keys, &waiting)) }
    }

    /// Whether a key is there now.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::StoreTimeout`] when the server cannot be reached.
    pub fn check(&self, key: &str) -> Result<bool> {
        self.connection.call("check", &[key], |raw, keys| raw.check(&keys[0]))
    }

    /// Adds to a counter, which starts from 0, and returns the sum. Atomic among all connections.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::StoreTimeout`] when the server cannot be reached.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        self.connection.call("add to", &[key], move |raw, keys| raw.add(&keys[0], amount))
    }

    /// Deletes a key; false when it was not there.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::StoreTimeout`] when the server cannot be reached.
    pub fn delete(&self, key: &str) -> Result<bool> {
        self.connection.call("delete", &[key], |raw, keys| raw.delete(&keys[0]))
    }
}

/// The first address of `host` where somebody listens, asked for again and again until the limit: the server
/// may start later, and its name may come later still.
fn find_server(host: &str, port: u16, limit: &Deadline) -> io::Result<SocketAddr> {
    loop {
        let mut failure = io::Error::other("the name has no address");
        match (host, port).to_socket_addrs() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) => failure = error,
            Ok(addresses) => {
                for address in addresses {
                    let timeout = limit.left().clamp(RETRY_INTERVAL, CONNECT_TIMEOUT);
                    match TcpStream::connect_timeout(&address, timeout) {
                        Ok(_) => return Ok(address),
                        Err(error) => failure = error,
                    }
                }
            }
        }
        if limit.left().is_zero() {
            return Err(failure);
        }
        thread::sleep(RETRY_INTERVAL.min(limit.left()));
    }
}

/// The address as text that needs no looking up.
fn numeric(address: SocketAddr) -> CString {
    CString::new(address.ip().to_string()).expect("an IP address has no NUL")
}

/// Opens the first connection on a thread of its own: resolving a name and connecting know limits of their
/// own only.
fn open<F>(
    address: &Address,
    operation: &'static str,
    timeout: Duration,
    serves: bool,
    make: F,
) -> Result<Store>
where
    F: FnOnce() -> io::Result<(RawStore, u16)> + Send + 'static,
{
    let (server, key) = (address.to_string(), String::new());
    let made = match call_within("store-open", timeout.saturating_add(ROUND_TRIP), make) {
        Ok(made) => made,
        Err(Late::NoThread(error)) => Err(error),
        Err(Late::NotBack(waited)) => {
            let reason = "no store answered";
            return Err(Error::StoreTimeout { address: server, operation, key, reason, waited });
        }
    };
    let (raw, port) =
        made.map_err(|error| Error::Store { address: server, operation, key, reason: error.to_string() })?;
    let connection = Connection {
        raw: Arc::new(raw),
        address: Address { port, ..address.clone() },
        prefix: String::new(),
        limit: timeout,
        serves,
        given_up: Arc::new(AtomicBool::new(false)),
    };
    Ok(Store { connection, not_sync: PhantomData })
}

/// What a [`Store`] is made of; unlike it, shared between threads where the calls are short.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    raw: Arc<RawStore>,
    pub(crate) address: Address,
    prefix: String,
    /// Of calls without one of their own.
    limit: Duration,
    /// Whether this process hosts the server.
    pub(crate) serves: bool,
    /// A call did not come back and holds the connection.
    given_up: Arc<AtomicBool>,
}

impl Connection {
    /// A new connection to the same server.
    pub(crate) fn reconnect(&self) -> Result<Self> {
        let raw = self.call("reconnect", &[], |raw, _| raw.reconnect())?;
        Ok(Self { raw: Arc::new(raw), given_up: Arc::new(AtomicBool::new(false)), ..self.clone() })
    }

    /// A new connection to the same server, under a further prefix.
    pub(crate) fn under(&self, name: &str) -> Result<Self> {
        let connection = self.reconnect()?;
        Ok(Self { prefix: format!("{}{name}/", self.prefix), ..connection })
    }

    /// The connection itself, for a thread that may wait on it for as long as it likes.
    pub(crate) fn raw(&self) -> &Arc<RawStore> {
        &self.raw
    }

    /// A key as the server knows it.
    pub(crate) fn full_key(&self, key: &str) -> Result<CString> {
        text(&format!("{}{key}", self.prefix)).map_err(|nul| Error::Invalid {
            group: key.to_owned(),
            operation: "use of a store key",
            reason: nul.to_string(),
        })
    }

    /// [`call_for`](Connection::call_for) with the limit of the connection.
    pub(crate) fn call<T, F>(&self, operation: &'static str, keys: &[&str], call: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&RawStore, &[CString]) -> std::result::Result<T, Thrown> + Send + 'static,
    {
        self.call_for(self.limit, operation, keys, call)
    }

    /// Runs `call` with the full names of `keys`, and gives the connection up when it is not back by `limit`
    /// and the way to the server and back.
    pub(crate) fn call_for<T, F>(
        &self,
        limit: Duration,
        operation: &'static str,
        keys: &[&str],
        call: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&RawStore, &[CString]) -> std::result::Result<T, Thrown> + Send + 'static,
    {
        let full_keys = keys.iter().map(|key| self.full_key(key)).collect::<Result<Vec<_>>>()?;
        let (address, key) = (self.address.to_string(), keys.join(","));
        if self.given_up.load(Ordering::Acquire) {
            let reason = "the server did not answer an earlier call".to_owned();
            return Err(Error::Store { address, operation, key, reason });
        }
        let raw = Arc::clone(&self.raw);
        match call_within("store-call", limit.saturating_add(ROUND_TRIP), move || call(&raw, &full_keys)) {
            Ok(result) => {
                result.map_err(|thrown| Error::Store { address, operation, key, reason: thrown.to_string() })
            }
            Err(Late::NoThread(error)) => {
                Err(Error::Store { address, operation, key, reason: error.to_string() })
            }
            Err(Late::NotBack(waited)) => {
                self.given_up.store(true, Ordering::Release);
                let reason = "the server did not answer";
                Err(Error::StoreTimeout { address, operation, key, reason, waited })
            }
        }
    }

    fn absent(&self, operation: &'static str, keys: &[&str], waiting: &Deadline) -> Error {
        Error::StoreTimeout {
            address: self.address.to_string(),
            operation,
            key: keys.join(","),
            reason: "not there",
            waited: waiting.waited(),
        }
    }
}

/// Text that C++ cannot hold.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} contains a NUL byte")]
pub(crate) struct Nul(String);

/// Text for C++.
///
/// # Errors
/// When it contains a NUL byte.
pub(crate) fn text(text: &str) -> std::result::Result<CString, Nul> {
    CString::new(text).map_err(|_| Nul(text.to_owned()))
}
