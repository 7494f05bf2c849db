//! Whether everybody reads the policy's tokens as the policy does. Actors have their tokenizer from the
//! learner; a reward server has a folder of its own, and with a wrong one it would score other texts than
//! the policy's.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use types::{MemberId, Vocabulary};

use super::members::Members;
use super::refusal::{Refusal, RefusalCause};
use super::role::Role;

/// A member and the vocabulary of its tokenizer.
#[derive(Debug, Clone)]
pub(super) struct Stated {
    pub(super) role: Role,
    pub(super) member: MemberId,
    /// Where others reach it, if they do.
    pub(super) address: Option<String>,
    pub(super) vocabulary: Arc<Vocabulary>,
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, member, address, vocabulary } = self;
        let address = address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
        write!(f, "{} {member}{address} ({vocabulary})", role.name())
    }
}

/// What is known of the policy's vocabulary.
#[derive(Debug, Clone, Default)]
pub(super) struct Vocabularies {
    /// Who said which the policy's is: the learner, or an actor before the learner has come.
    policy: Option<Stated>,
    /// Roles of which somebody did not say: people are told once.
    unsaid: BTreeSet<Role>,
}

impl Vocabularies {
    /// The vocabulary, kept once however many members have it.
    pub(super) fn shared(&self, vocabulary: &Vocabulary) -> Arc<Vocabulary> {
        match &self.policy {
            Some(policy) if *policy.vocabulary == *vocabulary => Arc::clone(&policy.vocabulary),
            _ => Arc::new(vocabulary.clone()),
        }
    }

    /// Checks that a member reads the policy's tokens as the policy does, as far as both are known.
    pub(super) fn check(&self, theirs: &Stated) -> Result<(), Refusal> {
        match &self.policy {
            Some(policy) if theirs.role != Role::Learner => compare(theirs, policy),
            _ => Ok(()),
        }
    }

    /// A member has joined. The learner's word counts; whether the policy's vocabulary is another than
    /// before, or known now.
    pub(super) fn learn(&mut self, stated: Stated) -> bool {
        if stated.vocabulary.tokens() == 0 {
            return false;
        }
        let counts = match stated.role {
            Role::Learner => true,
            Role::Actor => self.policy.is_none(),
            Role::RewardServer => false,
        };
        if !counts {
            return false;
        }
        let before = self.policy.replace(stated);
        before.is_none_or(|before| {
            self.policy.as_ref().is_some_and(|policy| policy.vocabulary != before.vocabulary)
        })
    }

    /// A member of this role did not say which it has; whether it is the first one.
    pub(super) fn is_first_unsaid(&mut self, role: Role) -> bool {
        self.unsaid.insert(role)
    }

    /// Those of the connected members that read other tokens than the policy.
    pub(super) fn strangers(&self, members: &Members) -> Vec<(Role, MemberId, Refusal)> {
        let Some(policy) = &self.policy else { return Vec::new() };
        let servers = members.reward_servers().iter().filter(|(_, server)| server.connected);
        let servers = servers.filter_map(|(member, server)| {
            let address = Some(server.address.clone());
            let vocabulary = Arc::clone(server.vocabulary.as_ref()?);
            Some(Stated { role: Role::RewardServer, member: member.clone(), address, vocabulary })
        });
        let actors = members.connected_actors().filter_map(|(member, actor)| {
            let vocabulary = Arc::clone(actor.vocabulary.as_ref()?);
            let address = actor.source.clone();
            Some(Stated { role: Role::Actor, member: member.clone(), address, vocabulary })
        });
        let strangers = servers.chain(actors).filter_map(|theirs| {
            let refusal = compare(&theirs, policy).err()?;
            Some((theirs.role, theirs.member, refusal))
        });
        strangers.collect()
    }
}

fn compare(theirs: &Stated, policy: &Stated) -> Result<(), Refusal> {
    if Arc::ptr_eq(&theirs.vocabulary, &policy.vocabulary)
        || theirs.vocabulary.agrees_with(&policy.vocabulary)
    {
        return Ok(());
    }
    let advice = match theirs.role {
        Role::RewardServer => {
            "it would score other texts than the policy's: name the policy's folder in its key `tokenizer`, and use \
             reward models trained with the policy's tokenizer"
        }
        Role::Actor | Role::Learner => {
            "it has its tokenizer of another start of the run: stop it and start it again"
        }
    };
    let reason =
        format!("{theirs} has another tokenizer than the policy, which is that of {policy}; {advice}");
    Err(Refusal::new(RefusalCause::Tokenizer, reason))
}
