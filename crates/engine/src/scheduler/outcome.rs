//! What a step's tokens change.

use types::FinishReason;

use super::super::batch::{Batch, Drawn, Segment};
use super::super::grammar::Next;
use super::super::request::{Event, StopText, Token};
use super::super::sequence::Sequence;
use super::{PromptCache, Scheduler};

/// Why a sequence leaves.
enum Ending {
    Finished(FinishReason, Option<StopText>),
    Failed(String),
}

impl Scheduler {
    /// Records a step that was computed: `drawn` are the tokens of `batch.draws`.
    pub(crate) fn commit(&mut self, batch: &Batch, drawn: &[Drawn]) -> Vec<Event> {
        let mut events = Vec::new();
        let mut endings = Vec::new();
        self.totals.steps += 1;
        self.totals.computed_tokens += batch.tokens.len() as u64;
        self.totals.response_tokens += drawn.len() as u64;
        for segment in &batch.segments {
            self.totals.prefill_tokens += prefilled(segment) as u64;
            let sequence = &mut self.running[segment.sequence];
            sequence.cache(segment.rows.len(), self.version);
            self.publish_filled(segment.sequence, segment.rows.len());
            let sequence = &self.running[segment.sequence];
            if sequence.leads && sequence.cached + 1 >= sequence.prompt.len() {
                self.publish_prompt(segment.sequence);
            }
            let Some(draw) = segment.draw else { continue };
            if let Some(ending) = self.record(segment.sequence, &drawn[draw], &mut events) {
                endings.push((segment.sequence, ending));
            }
        }
        // From the last, so that the places of the others stay right; reported in the order of admission.
        let mut last_events: Vec<Event> = Vec::with_capacity(endings.len());
        for (at, ending) in endings.into_iter().rev() {
            let sequence = self.running.remove(at);
            last_events.push(self.end(sequence, ending));
        }
        events.extend(last_events.into_iter().rev());
        events
    }

    /// The leader has computed the prompt: its siblings may begin with it.
    fn publish_prompt(&mut self, at: usize) {
        let sequence = &mut self.running[at];
        sequence.leads = false;
        let tokens = sequence.prompt.len() - 1;
        let table = sequence.table[..tokens.div_ceil(self.limits.block_tokens)].to_vec();
        let group = self.groups.get_mut(&sequence.group).expect("a group lives as long as its sequences");
        group.prompt = if group.waiting > 0 {
            self.blocks.share(&table);
            PromptCache::Ready(table)
        } else {
            PromptCache::Empty
        };
    }

    /// Appends a drawn token to its sequence; the ending, if the token is the last.
    fn record(&mut self, at: usize, drawn: &Drawn, events: &mut Vec<Event>) -> Option<Ending> {
        let sequence = &mut self.running[at];
        if !drawn.logprob.is_finite() {
            let problem = format!("the model's log-probability of the drawn token is {}", drawn.logprob);
            return Some(Ending::Failed(problem));
        }
        sequence.push(drawn, self.version);
        if sequence.stream {
            let index = sequence.response.len() - 1;
            let Drawn { token, logprob, .. } = *drawn;
            events.push(Event::Token(Token {
                id: sequence.id,
                index,
                token,
                logprob,
                top: drawn.top.clone(),
            }));
        }
        let mut stop_text = None;
        if let (Some(stop), Some(tokenizer)) = (&mut sequence.stop, &self.tokenizer) {
            let counts = sequence.response.len() >= sequence.min_tokens;
            match stop.push(tokenizer, &sequence.prompt, drawn.token, counts) {
                Ok(found) => stop_text = found,
                Err(error) => return Some(Ending::Failed(error.to_string())),
            }
        }
        let is_ending = self.groups[&sequence.group].endings.binary_search(&drawn.token).is_ok();
        if stop_text.is_some() || is_ending {
            return Some(Ending::Finished(FinishReason::Stop, stop_text));
        }
        match sequence.grammar.as_mut().map(|grammar| grammar.push(drawn.token)) {
            None | Some(Ok(Next::Token)) => {}
            Some(Ok(Next::Nothing)) => return Some(Ending::Finished(FinishReason::Stop, None)),
            Some(Err(error)) => return Some(Ending::Failed(format!("the grammar: {error}"))),
        }
        (sequence.len() >= sequence.limit).then_some(Ending::Finished(FinishReason::Length, None))
    }

    /// Takes a sequence that has ended out of all accounts.
    fn end(&mut self, mut sequence: Sequence, ending: Ending) -> Event {
        self.ids.remove(&sequence.id);
        let key = sequence.group;
        match &ending {
            Ending::Finished(..) => self.publish_last(&mut sequence),
            // Numbers that are none are nobody's.
            Ending::Failed(_) => self.blocks.withdraw(&sequence.table),
        }
        self.blocks.release(&mut sequence.table);
        let group = self.group_mut(key);
        group.running -= 1;
        if sequence.leads {
            group.prompt = PromptCache::Empty;
        }
        self.settle(key);
        match ending {
            Ending::Finished(reason, stop_text) => {
                self.totals.finished += 1;
                Event::Finished(Box::new(sequence.finish(reason, stop_text)))
            }
            Ending::Failed(problem) => {
                self.totals.failed += 1;
                Event::Failed { id: sequence.id, response_tokens: sequence.response.len(), problem }
            }
        }
    }
}

/// Rows of a segment that were not drawn in the step before.
fn prefilled(segment: &Segment) -> usize {
    let rows = segment.rows.len();
    let decodes = rows == 1 && segment.draw.is_some() && segment.start >= segment.prompt_tokens;
    if decodes { 0 } else { rows }
}
