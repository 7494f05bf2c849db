//! From a failed operation to an error that names who is missing.
//!
//! The rank that fails first announces it in the store and gives the others a moment to report (see
//! [`watcher`](crate::watcher)). From the reports: who launched the operation, who something else, who is
//! behind, and who is silent.

use std::sync::Arc;
use std::time::Duration;

use crate::deadline::Deadline;
use crate::error::{Error, Fault, Peer, PeerState, Result};
use crate::membership::{Ending, Inner, STORE_TIMEOUT};
use crate::progress::{Report, Standing};

/// How long the others have to report. Answering takes a member that lives about a millisecond; on a machine
/// that is short of processors, some hundred.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);

/// An operation that was launched.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    /// The operation with its arguments, as all ranks would say it.
    pub(crate) description: String,
    pub(crate) sequence: u64,
    /// Whether all ranks launch it, under this number.
    pub(crate) collective: bool,
    /// Since it was launched.
    pub(crate) deadline: Deadline,
}

/// How an operation failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its deadline, or that of the wait for it, has passed.
    Late,
    /// It threw; c10d's message.
    Broken(String),
    /// The group ended while it was under way.
    Ended,
}

impl Inner {
    /// Ends the group for a failed operation, asks the others, and returns the error.
    pub(crate) fn fail(&self, note: &Note, failure: Failure) -> Error {
        let waited = note.deadline.waited();
        let late = matches!(failure, Failure::Late);
        let what = match failure {
            Failure::Late => "not done by its deadline".to_owned(),
            Failure::Broken(message) => message,
            Failure::Ended => "not done when the group ended".to_owned(),
        };
        let cause = format!("{} #{} failed on rank {}: {what}", note.description, note.sequence, self.rank);
        let mut root_cause = None;
        if self.end(Ending::Here(cause.clone())) {
            root_cause = self.announce(cause, Standing::Member);
            self.close();
        }
        let ending = self.ending().clone().expect("ended just now at the latest");
        let (reason, peers) = match &ending {
            Ending::Here(_) => (what, self.peers_at(note)),
            Ending::Aborted(reason) => (format!("aborted: {reason}"), Vec::new()),
            Ending::Elsewhere(cause) => {
                root_cause = Some(cause.clone());
                (what, self.peers_at(note))
            }
        };
        let reason = match root_cause {
            Some(cause) => format!("{reason}; the group had ended: {cause}"),
            None => reason,
        };
        let fault = Box::new(Fault {
            group: self.name.clone(),
            rank: self.rank,
            world_size: self.world_size,
            operation: note.description.clone(),
            sequence: note.sequence,
            waited,
            reason,
            peers,
        });
        match ending {
            Ending::Aborted(_) => Error::Aborted(fault),
            _ if late => Error::Timeout(fault),
            _ => Error::Lost(fault),
        }
    }

    /// The error of a call that finds the group ended, if it has.
    pub(crate) fn refuse_if_ended(&self, operation: &str) -> Result<()> {
        let Some(ending) = self.ending().clone() else { return Ok(()) };
        let silent = match ending {
            Ending::Aborted(_) => Vec::new(),
            Ending::Here(_) | Ending::Elsewhere(_) => {
                let reports = self.reports();
                self.peers().filter(|rank| reports.get(*rank).is_some_and(Option::is_none)).collect()
            }
        };
        Err(Error::Dead {
            group: self.name.clone(),
            rank: self.rank,
            world_size: self.world_size,
            operation: operation.to_owned(),
            cause: ending.to_string(),
            silent,
        })
    }

    /// Tells the store how this rank stands, and the others that the group has ended and why. Only the first
    /// member to do so is listened to; for the rest, what the first one said is returned.
    pub(crate) fn announce(&self, cause: String, standing: Standing) -> Option<String> {
        let report = self.progress().report(standing).encode();
        let mut keys = vec![format!("report/{}", self.rank), "ended".to_owned(), "cause".to_owned()];
        keys.extend(self.peers().map(|peer| format!("wake/{peer}")));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let announced = self.control.call_for(STORE_TIMEOUT, "announce", &keys, move |raw, keys| {
            raw.set(&keys[0], &report)?;
            if raw.add(&keys[1], 1)? > 1 {
                return raw.get(&keys[2], STORE_TIMEOUT);
            }
            for key in &keys[2..] {
                raw.set(key, cause.as_bytes())?;
            }
            Ok(None)
        });
        // When the store cannot be told, asking for the reports fails too, and that is part of the error.
        let root_cause = announced.ok().flatten()?;
        Some(String::from_utf8_lossy(&root_cause).into_owned())
    }

    /// How the others stand towards an operation.
    fn peers_at(&self, note: &Note) -> Vec<Peer> {
        let reports = self.reports();
        (0..self.world_size)
            .filter(|rank| *rank != self.rank && !reports.is_empty())
            .map(|rank| Peer { rank, state: state_at(note, reports[rank].as_ref()) })
            .chain(self.lost_host(reports.is_empty()))
            .collect()
    }

    /// What [`ask`](Inner::ask) returned the one time it was called.
    fn reports(&self) -> Arc<Vec<Option<Report>>> {
        let mut reports = self.reports.lock().expect("nothing panics while it holds the reports");
        reports.get_or_insert_with(|| Arc::new(self.ask())).clone()
    }

    /// The reports by rank, once all are there or [`REPORT_TIMEOUT`] is over. Empty when the store cannot be
    /// reached.
    fn ask(&self) -> Vec<Option<Report>> {
        let keys: Vec<String> = (0..self.world_size).map(|rank| format!("report/{rank}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let own = self.rank;
        let asked = self.control.call_for(REPORT_TIMEOUT, "ask for", &keys, move |raw, keys| {
            let others: Vec<_> = keys.iter().enumerate().filter(|(rank, _)| *rank != own).collect();
            let expected: Vec<_> = others.iter().map(|(_, key)| key.as_c_str()).collect();
            raw.wait(&expected, REPORT_TIMEOUT)?;
            let mut reports = vec![None; keys.len()];
            for (rank, key) in others {
                if raw.check(key)? {
                    reports[rank] = raw.get(key, STORE_TIMEOUT)?.and_then(|report| Report::decode(&report));
                }
            }
            Ok(reports)
        });
        asked.unwrap_or_default()
    }

    /// When the store does not answer, its host is the only member of which something is known.
    fn lost_host(&self, store_is_lost: bool) -> Option<Peer> {
        let rank = self.host_rank.filter(|rank| store_is_lost && *rank != self.rank)?;
        Some(Peer { rank, state: PeerState::Silent })
    }

    /// Notes in the store that this rank waits in an operation, and looks at what the others wait in. Returns
    /// how they disagree, if they do. For operations that take long; errors of the store are not their
    /// business.
    pub(crate) fn disagreement(&self, note: &Note) -> Option<String> {
        if !note.collective {
            return None;
        }
        let report = self.progress().report(Standing::Member).encode();
        let keys: Vec<String> = (0..self.world_size).map(|rank| format!("at/{rank}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let own = self.rank;
        let looked = self.control.call_for(STORE_TIMEOUT, "compare", &keys, move |raw, keys| {
            raw.set(&keys[own], &report)?;
            let mut reports = Vec::new();
            for (rank, key) in keys.iter().enumerate().filter(|(rank, _)| *rank != own) {
                if raw.check(key)? {
                    reports.push((
                        rank,
                        raw.get(key, STORE_TIMEOUT)?.and_then(|report| Report::decode(&report)),
                    ));
                }
            }
            Ok(reports)
        });
        looked.unwrap_or_default().into_iter().find_map(|(rank, report)| {
            match state_at(note, report.as_ref()) {
                PeerState::Differs(theirs) => {
                    Some(format!("the ranks disagree: rank {rank} launched {theirs}"))
                }
                _ => None,
            }
        })
    }
}

fn state_at(note: &Note, report: Option<&Report>) -> PeerState {
    let Some(report) = report else { return PeerState::Silent };
    match &report.standing {
        Standing::Left => return PeerState::Left,
        Standing::Aborted(reason) => return PeerState::Aborted(reason.clone()),
        Standing::Member if !note.collective => return PeerState::Present,
        Standing::Member => {}
    }
    match report.operation(note.sequence) {
        Some(theirs) if theirs == note.description => PeerState::Present,
        Some(theirs) => PeerState::Differs(format!("{theirs} #{}", note.sequence)),
        None if report.launched < note.sequence => PeerState::Behind(report.last()),
        None => PeerState::Present,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;

    #[test]
    fn a_report_places_its_rank() {
        let note = |sequence, collective| Note {
            description: format!("broadcast 0 Float [{sequence}]"),
            sequence,
            collective,
            deadline: Deadline::after(Duration::from_secs(1)),
        };
        let mut progress = Progress::default();
        let empty = progress.report(Standing::Member);
        assert_eq!(state_at(&note(1, true), None), PeerState::Silent);
        assert_eq!(state_at(&note(1, true), Some(&empty)), PeerState::Behind(None));
        for number in 1..=70 {
            progress.launch(&format!("broadcast 0 Float [{number}]"));
        }
        progress.launch("all_reduce sum Float [1]");
        let report = progress.report(Standing::Member);
        assert_eq!(state_at(&note(70, true), Some(&report)), PeerState::Present);
        assert_eq!(state_at(&note(1, true), Some(&report)), PeerState::Present, "long past");
        assert_eq!(
            state_at(&note(71, true), Some(&report)),
            PeerState::Differs("all_reduce sum Float [1] #71".into())
        );
        assert_eq!(
            state_at(&note(72, true), Some(&report)),
            PeerState::Behind(Some("all_reduce sum Float [1] #71".into()))
        );
        assert_eq!(state_at(&note(72, false), Some(&report)), PeerState::Present, "not all ranks count it");
        assert_eq!(state_at(&note(1, true), Some(&progress.report(Standing::Left))), PeerState::Left);
        let aborted = progress.report(Standing::Aborted("enough".into()));
        assert_eq!(state_at(&note(1, true), Some(&aborted)), PeerState::Aborted("enough".into()));
    }
}
