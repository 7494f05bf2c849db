//! The thread that hears of the end of a group on another member.
//!
//! Each member waits on its key `wake/<rank>` in the store. Whoever ends the group sets that key for all others; they
//! answer with a report of how far they are in `report/<rank>`, then end the group themselves. So a failure on one
//! member ends the group on all within milliseconds, whatever they are doing, and whoever does not answer is the one
//! that is dead or stopped. While all goes well the thread sleeps, and no operation touches the store.

use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::group::{Ending, Inner, TELLING};
use crate::progress::Standing;
use crate::store::Connection;

/// What a member sets its own key to when it leaves.
const LEAVE: &[u8] = b"leave";

/// How often a watcher looks whether its group is still there, should a farewell have been lost.
const LOOK: Duration = Duration::from_secs(600);

/// Starts watching, on a connection that is the watcher's alone.
pub(crate) fn start(connection: Connection, group: &Arc<Inner>) -> Result<()> {
    let address = connection.address.to_string();
    let own = Arc::downgrade(group);
    let rank = group.rank;
    let spawned = thread::Builder::new().name("group-watcher".to_owned()).spawn(move || {
        // An error here is a store that is gone; operations that suffer from it will say so.
        let _ = watch(&connection, &own, rank);
    });
    match spawned {
        Ok(_) => Ok(()),
        Err(error) => {
            let reason = format!("cannot start a thread: {error}");
            Err(Error::Store { address, operation: "watch", key: format!("wake/{rank}"), reason })
        }
    }
}

fn watch(connection: &Connection, group: &Weak<Inner>, rank: usize) -> std::result::Result<(), String> {
    let key = connection.full_key(&format!("wake/{rank}")).map_err(|error| error.to_string())?;
    let announcement = loop {
        match connection.raw().get(&key, LOOK)? {
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
        let key = connection.full_key(&format!("report/{rank}")).map_err(|error| error.to_string())?;
        let answered = connection.raw().set(&key, &report.encode());
        group.close();
        answered?;
    }
    Ok(())
}

/// Sends the own watcher home and, unless the group had ended, says farewell to the others.
pub(crate) fn leave(group: &Inner, was_open: bool) {
    let report = group.progress().report(Standing::Left);
    let keys = [&*format!("report/{}", group.rank), &*format!("wake/{}", group.rank)];
    // When the store is gone, so is everybody who would have listened.
    let _ = group.control.call_for(TELLING, "leave", &keys, move |raw, keys| {
        if was_open {
            raw.set(&keys[0], &report.encode())?;
        }
        raw.set(&keys[1], LEAVE)
    });
}
