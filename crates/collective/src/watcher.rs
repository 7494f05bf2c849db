//! The thread that hears of the end of a group on another member.
//!
//! Each member waits on its key `wake/<rank>` in the store. Whoever ends the group sets that key for all
//! others; they answer with a report of how far they are in `report/<rank>`, then end the group themselves.
//! So a failure on one member ends the group on all within milliseconds, whatever they are doing, and whoever
//! does not answer is the one that is dead or stopped. While all goes well the thread sleeps, and no
//! operation touches the store.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::deadline::Late;
use crate::error::{Error, Result};
use crate::membership::{Ending, Inner, STORE_TIMEOUT};
use crate::progress::Standing;
use crate::store::Connection;

/// What a member sets its own key to when it leaves.
const LEAVE: &[u8] = b"leave";

/// How often a watcher looks whether its group is still there, should the notice that it left have been lost.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(600);

/// Starts watching, on a connection that is the watcher's alone.
pub(crate) fn start(connection: Connection, group: &Arc<Inner>) -> Result<()> {
    let (watched, own, rank) = (connection.clone(), Arc::downgrade(group), group.rank);
    let spawned = thread::Builder::new().name("group-watcher".to_owned()).spawn(move || {
        // An error here is a store that is gone; operations that suffer from it will say so.
        let _ = watch(&watched, &own, rank);
    });
    match spawned {
        Ok(_) => Ok(()),
        Err(error) => Err(lost(&connection, rank, &Late::NoThread(error))),
    }
}

fn watch(connection: &Connection, group: &Weak<Inner>, rank: usize) -> Result<()> {
    let key = connection.full_key(&format!("wake/{rank}"))?;
    let announcement = loop {
        let got = connection.raw().get(&key, LIVENESS_INTERVAL);
        match got.map_err(|thrown| lost(connection, rank, &thrown))? {
            Some(announcement) => break announcement,
            None if group.strong_count() == 0 => return Ok(()),
            None => {}
        }
    };
    if announcement == LEAVE {
        return Ok(());
    }
    let Some(group) = group.upgrade() else { return Ok(()) };
    let report = group.progress().report(Standing::Member);
    if group.end(Ending::Elsewhere(String::from_utf8_lossy(&announcement).into_owned())) {
        let key = connection.full_key(&format!("report/{rank}"))?;
        let answered = connection.raw().set(&key, &report.encode());
        group.close();
        answered.map_err(|thrown| lost(connection, rank, &thrown))?;
    }
    Ok(())
}

/// The error of a watcher that cannot go on.
fn lost(connection: &Connection, rank: usize, reason: &dyn std::error::Error) -> Error {
    let (address, key) = (connection.address.to_string(), format!("wake/{rank}"));
    Error::Store { address, operation: "watch", key, reason: reason.to_string() }
}

/// Ends the own watcher and, unless the group had ended, tells the others that this rank has left.
pub(crate) fn leave(group: &Inner, was_open: bool) {
    let report = group.progress().report(Standing::Left);
    let keys = [&*format!("report/{}", group.rank), &*format!("wake/{}", group.rank)];
    // When the store is gone, so is everybody who would have listened.
    let _ = group.control.call_for(STORE_TIMEOUT, "leave", &keys, move |raw, keys| {
        if was_open {
            raw.set(&keys[0], &report.encode())?;
        }
        raw.set(&keys[1], LEAVE)
    });
}
