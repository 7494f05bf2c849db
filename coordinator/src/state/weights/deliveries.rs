//! What is on its way to each actor that lacks the newest weights, from whom, and until when.
//!
//! A pull comes from whoever holds the weights and is least busy: the learner, or an actor that shares what
//! it has. A source serves few at a time; who finds none waits until somebody has the weights. So the weights
//! spread as a tree, and the learner serves as few with a thousand actors as with ten.

use std::collections::{BTreeMap, BTreeSet};

use types::{MemberId, Timestamp};

use super::super::deadlines::Deadlines;

/// Pulls that one source serves at a time.
const PULLS_PER_SOURCE: usize = 4;

/// Who can be pulled from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// An actor that shares its weights. Actors come first: the learner has other work.
    Actor(MemberId),
    /// The learner.
    Learner,
}

/// How weights get to one actor.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Delivery {
    /// It takes part in a broadcast, which has to have ended by then.
    Broadcast(Timestamp),
    /// It pulls, and has to have come further by then.
    Pull { deadline: Timestamp, source: Source },
    /// They did not arrive; the actor pulls no sooner than this.
    PullAfter(Timestamp),
}

/// Deliveries of the newest version to connected actors.
#[derive(Debug, Clone, Default)]
pub(super) struct Deliveries {
    by_actor: BTreeMap<MemberId, Delivery>,
    deadlines: Deadlines<MemberId>,
    /// Actors that may lack the newest version.
    unserved: BTreeSet<MemberId>,
    /// Those of them whose last pull failed: they pull from the learner, which is never wrong.
    failed: BTreeSet<MemberId>,
    /// Who holds the newest version, and how many pull from it.
    load: BTreeMap<Source, usize>,
    /// The sources that can serve another one, the least busy first.
    free: BTreeSet<(usize, Source)>,
}

impl Deliveries {
    /// There is a newer version, which only the learner has.
    pub(super) fn new_version(&mut self) {
        self.load.clear();
        self.free.clear();
        self.add_source(Source::Learner);
    }

    /// Somebody holds the newest version and shares it.
    pub(super) fn add_source(&mut self, source: Source) {
        if !self.load.contains_key(&source) {
            let pulls = |delivery: &&Delivery| delivery.source() == Some(&source);
            // Pulls of the version before from the same source still keep it busy.
            let load = self.by_actor.values().filter(pulls).count();
            self.set_load(source, load);
        }
    }

    /// A source is away. Who pulled from it, this version or another, is served anew.
    fn remove_source(&mut self, source: &Source) {
        if let Some(load) = self.load.remove(source) {
            self.free.remove(&(load, source.clone()));
        }
        let pulls = |(_, delivery): &(&MemberId, &Delivery)| delivery.source() == Some(source);
        let stranded: Vec<MemberId> =
            self.by_actor.iter().filter(pulls).map(|(actor, _)| actor.clone()).collect();
        for actor in stranded {
            self.end(&actor);
            self.unserved.insert(actor);
        }
    }

    fn set_load(&mut self, source: Source, load: usize) {
        if let Some(before) = self.load.insert(source.clone(), load) {
            self.free.remove(&(before, source.clone()));
        }
        if load < PULLS_PER_SOURCE {
            self.free.insert((load, source));
        }
    }

    /// Whether an actor lacks the newest version.
    pub(super) fn set_unserved(&mut self, actor: &MemberId, lacks: bool) {
        if lacks {
            self.unserved.insert(actor.clone());
        } else {
            self.unserved.remove(actor);
        }
    }

    /// These may lack the newest version.
    pub(super) fn add_unserved(&mut self, actors: impl IntoIterator<Item = MemberId>) {
        self.unserved.extend(actors);
    }

    /// An actor is away.
    pub(super) fn forget(&mut self, actor: &MemberId) {
        self.end(actor);
        self.unserved.remove(actor);
        self.failed.remove(actor);
        self.remove_source(&Source::Actor(actor.clone()));
    }

    /// The learner is another one: what was on its way from the one before is not any more.
    pub(super) fn learner_joined(&mut self) {
        let under_way = |delivery: &Delivery| !matches!(delivery, Delivery::PullAfter(_));
        let actors: Vec<MemberId> =
            self.by_actor.iter().filter(|(_, it)| under_way(it)).map(|(actor, _)| actor.clone()).collect();
        for actor in actors {
            self.end(&actor);
            self.unserved.insert(actor);
        }
    }

    /// An actor has what was on its way.
    pub(super) fn arrived(&mut self, actor: &MemberId) {
        self.end(actor);
        self.failed.remove(actor);
    }

    /// Nothing is on its way to an actor any more.
    fn end(&mut self, actor: &MemberId) {
        self.deadlines.remove(actor);
        let ended = self.by_actor.remove(actor);
        if let Some(Delivery::Pull { source, .. }) = ended
            && let Some(load) = self.load.get(&source).copied()
        {
            self.set_load(source, load.saturating_sub(1));
        }
    }

    /// An actor did not get its weights: it pulls after a pause, from the learner.
    pub(super) fn failed(&mut self, actor: &MemberId, retry_at: Timestamp) {
        if matches!(self.by_actor.get(actor), Some(Delivery::Pull { .. })) {
            self.failed.insert(actor.clone());
        }
        self.set(actor, retry_at, Delivery::PullAfter(retry_at));
    }

    /// A broadcast begins for an actor.
    pub(super) fn broadcast(&mut self, actor: &MemberId, deadline: Timestamp) {
        self.set(actor, deadline, Delivery::Broadcast(deadline));
    }

    fn set(&mut self, actor: &MemberId, moment: Timestamp, delivery: Delivery) {
        self.end(actor);
        self.deadlines.set(actor, moment);
        self.by_actor.insert(actor.clone(), delivery);
        self.unserved.remove(actor);
    }

    /// An actor has received a part of what it pulls: from the learner it is given more time. An actor that
    /// sends too slowly, by need or by will, is given up, and the pull goes on from the learner where it is.
    pub(super) fn came_further(&mut self, actor: &MemberId, until: Timestamp) {
        if let Some(Delivery::Pull { deadline, source: Source::Learner }) = self.by_actor.get_mut(actor) {
            *deadline = until;
        }
    }

    /// Whether weights are on their way to an actor.
    pub(super) fn is_under_way(&self, actor: &MemberId) -> bool {
        matches!(self.by_actor.get(actor), Some(Delivery::Broadcast(_) | Delivery::Pull { .. }))
    }

    /// Begins pulls, as many as the sources can serve: of the actors that lack the newest version, as
    /// `lacks` says, those that are not `left_out`. Costs nothing while no source is free.
    pub(super) fn start_pulls(
        &mut self,
        deadline: Timestamp,
        lacks: impl Fn(&MemberId) -> bool,
        left_out: impl Fn(&MemberId) -> bool,
    ) -> Vec<(MemberId, Source)> {
        let (mut started, mut waiting) = (Vec::new(), Vec::new());
        while let Some((_, least_busy)) = self.free.first() {
            let least_busy = least_busy.clone();
            let Some(actor) = self.unserved.pop_first() else { break };
            if self.by_actor.contains_key(&actor) || !lacks(&actor) {
                continue;
            }
            let source = match self.failed.contains(&actor) {
                true => Source::Learner,
                false => least_busy,
            };
            let load = self.load.get(&source).copied().unwrap_or(PULLS_PER_SOURCE);
            if left_out(&actor) || load >= PULLS_PER_SOURCE {
                waiting.push(actor);
                continue;
            }
            self.set_load(source.clone(), load + 1);
            self.deadlines.set(&actor, deadline);
            self.by_actor.insert(actor.clone(), Delivery::Pull { deadline, source: source.clone() });
            started.push((actor, source));
        }
        self.unserved.extend(waiting);
        started
    }

    /// The next moment at which something is due.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.next()
    }

    /// Gives up what is past its deadline, until `retry_at`, and serves anew who has waited long enough.
    pub(super) fn expire(&mut self, now: Timestamp, retry_at: Timestamp) {
        while let Some(actor) = self.deadlines.pop_due(now) {
            match self.by_actor.get(&actor) {
                Some(Delivery::Pull { deadline, .. }) if *deadline > now => {
                    self.deadlines.set(&actor, *deadline);
                }
                Some(Delivery::Pull { .. } | Delivery::Broadcast(_)) => self.failed(&actor, retry_at),
                Some(Delivery::PullAfter(_)) => {
                    self.end(&actor);
                    self.unserved.insert(actor);
                }
                None => {}
            }
        }
    }
}

impl Delivery {
    fn source(&self) -> Option<&Source> {
        match self {
            Self::Pull { source, .. } => Some(source),
            Self::Broadcast(_) | Self::PullAfter(_) => None,
        }
    }
}
