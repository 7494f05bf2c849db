//! The store alone.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use collective::{Error, Store};

use crate::threads::{TIMEOUT, connect, on_threads, serve};

crate::tests! {
    keys_are_set_read_counted_and_deleted,
    prefixes_keep_apart,
    waiting_on_one_connection_holds_up_no_other,
    what_is_not_there_in_time_is_an_error,
    a_server_that_is_gone_is_an_error,
    a_port_in_use_is_an_error,
    only_the_given_address_is_bound,
    keys_with_nul_are_refused,
}

fn keys_are_set_read_counted_and_deleted() {
    let store = serve();
    assert_ne!(store.port(), 0);
    assert_eq!(store.host(), "127.0.0.1");
    let other = connect(&store);
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for value in [&[][..], b"one", &value] {
        store.set("key", value).expect("set");
        assert!(other.get("key", TIMEOUT).expect("get") == value);
    }
    assert!(other.check("key").expect("check"));
    assert!(other.delete("key").expect("delete"));
    assert!(!store.delete("key").expect("delete again"));
    assert!(!store.check("key").expect("check"));
    assert_eq!(store.add("count", 5).expect("add"), 5);
    assert_eq!(other.add("count", -7).expect("add"), -2);
    let sums = on_threads(4, |_, store| (0..100).map(|_| store.add("count", 1).expect("add")).max());
    assert_eq!(sums.into_iter().max(), Some(Some(400)));
}

fn prefixes_keep_apart() {
    let store = serve();
    let first = store.prefix("first").expect("prefix");
    let inner = first.prefix("inner").expect("prefix of a prefix");
    let second = store.prefix("second").expect("prefix");
    first.set("key", b"1").expect("set");
    inner.set("key", b"2").expect("set");
    assert!(!second.check("key").expect("check"));
    assert_eq!(store.get("first/key", TIMEOUT).expect("get"), b"1");
    assert_eq!(store.get("first/inner/key", TIMEOUT).expect("get"), b"2");
    assert_eq!(inner.port(), store.port());
}

fn waiting_on_one_connection_holds_up_no_other() {
    let store = serve();
    let waiting = store.prefix("group").expect("prefix");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || waiting.wait(&["a", "b"], TIMEOUT));
        store.set("group/a", b"").expect("set beside the wait");
        store.set("group/b", b"").expect("set beside the wait");
        waiter.join().expect("no panic").expect("both keys come");
    });
}

fn what_is_not_there_in_time_is_an_error() {
    let store = serve();
    let limit = Duration::from_millis(200);
    let start = Instant::now();
    let error = store.get("never", limit).expect_err("nobody sets it");
    assert!(start.elapsed() >= limit && start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(
        matches!(&error, Error::StoreTimeout { operation: "get", key, .. } if key == "never"),
        "{error:?}"
    );
    store.set("there", b"").expect("set");
    let error = store.wait(&["there", "never"], limit).expect_err("one of them never comes");
    assert!(error.to_string().contains("wait for \"there,never\": not there after"), "{error}");
    store.set("never", b"after all").expect("the connection is as good as new");
    assert_eq!(store.get("never", limit).expect("get"), b"after all");
}

fn a_server_that_is_gone_is_an_error() {
    let store = serve();
    let client = connect(&store);
    let port = store.port();
    drop(store);
    let start = Instant::now();
    let error = client.get("key", TIMEOUT).expect_err("there is no server");
    assert!(matches!(error, Error::Store { .. }), "{error:?}");
    let error = Store::connect("127.0.0.1", port, Duration::from_secs(1)).expect_err("there is no server");
    assert!(matches!(error, Error::Store { .. } | Error::StoreTimeout { .. }), "{error:?}");
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

fn a_port_in_use_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port();
    let error = Store::serve("127.0.0.1", port, TIMEOUT).expect_err("the port is taken");
    assert!(error.to_string().contains("in use"), "{error}");
}

fn only_the_given_address_is_bound() {
    let store = serve();
    let elsewhere = std::net::TcpStream::connect(("127.0.0.2", store.port())).expect_err("not bound");
    assert_eq!(elsewhere.kind(), ErrorKind::ConnectionRefused);
}

fn keys_with_nul_are_refused() {
    let store = serve();
    assert!(matches!(store.set("a\0b", b""), Err(Error::Invalid { .. })));
    assert!(matches!(Store::connect("a\0b", 1, TIMEOUT), Err(Error::Store { .. })));
}
