//! What policies are compared on, and what says how good their responses are: the problems' hidden tests, or
//! scorers as in the ring.

use std::path::Path;
use std::sync::Arc;

use coordinator::data::{DataConfig, PromptRow};
use engine::EngineConfig;
use engine::generate::{DrawOptions, Generator, Response};
use serde_json::Value;
use service::BadInput;
use service::jsonl::WrongLines;
use types::PromptContent;

use crate::episodes::{Drawing, EpisodeSetup};
use crate::grading::{self, GradingSetup, Task};
use crate::judging::{Judged, drawn_to, judge, judging_config, read_prompts};
use crate::rate::Rate;
use crate::recipe::{EvalStage, Judge, Recipe};
use crate::responses;

use super::kinds::Kinds;
use super::numbers::Numbers;

/// The problems of a comparison.
pub(super) struct Problems {
    /// How programs are graded.
    setup: GradingSetup,
    /// What responses are played in; none where they have one turn.
    episodes: Option<EpisodeSetup>,
    judged: ByWhom,
}

enum ByWhom {
    Tests(Vec<Task>),
    Scorers { rows: Vec<PromptRow>, config: Box<reward_server::Config> },
}

/// What was found about responses.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// How right each is, from 0 to 1.
    pub(super) outcomes: Numbers,
    /// The weighted sum of the scorers; empty where tests judge.
    pub(super) scores: Numbers,
    /// Responses that could not be judged; they count in no figure.
    pub(super) unjudged: usize,
    /// Why the first of them could not.
    pub(super) first_problem: Option<String>,
}

impl Found {
    /// What policies are compared by: the outcomes, or the scores where nothing says what is right.
    pub(super) fn figure(&self) -> &Numbers {
        if self.outcomes.rate().is_some() { &self.outcomes } else { &self.scores }
    }

    /// How much better what came `after` is, problem by problem.
    pub(super) fn gain(&self, after: &Self) -> Option<Rate> {
        self.figure().gain(after.figure())
    }
}

impl Problems {
    /// Those of a stage in this file, or the first of them.
    ///
    /// # Errors
    /// Names the file and line that cannot be used.
    pub(super) fn read(
        recipe: &Recipe,
        stage: &EvalStage,
        path: &Path,
        most: Option<usize>,
    ) -> anyhow::Result<Self> {
        let setup = GradingSetup::of_recipe(recipe);
        let most = most.unwrap_or(usize::MAX);
        let judged = match stage.judge() {
            Judge::Tests => {
                let mut tasks = grading::read_tasks(path, &WrongLines::default())?;
                tasks.truncate(most);
                ByWhom::Tests(tasks)
            }
            Judge::Scorers => {
                let (path, columns) = (path.to_owned(), stage.columns.clone());
                let data = DataConfig { path, columns, ..DataConfig::default() };
                let mut rows = read_prompts(&data, &WrongLines::default())?;
                rows.truncate(most);
                let mut config = recipe.reward_server.clone();
                config.scorers = stage.judging_scorers(&config.scorers).to_vec();
                if config.scorers.is_empty() {
                    let problem =
                        "the stage's judge is \"scorers\", but neither it nor [reward_server] has any";
                    return Err(BadInput(problem.to_owned()).into());
                }
                ByWhom::Scorers { rows, config: Box::new(config) }
            }
        };
        let episodes = if stage.one_turn { None } else { EpisodeSetup::of_recipe(recipe)? };
        Ok(Self { setup, episodes, judged })
    }

    /// What the policies are given.
    fn prompts(&self) -> Vec<PromptContent> {
        match &self.judged {
            ByWhom::Tests(tasks) => tasks.iter().map(|task| task.prompt.clone()).collect(),
            ByWhom::Scorers { rows, .. } => rows.iter().map(|row| row.content.clone()).collect(),
        }
    }

    /// What a file of samples calls a problem.
    pub(super) fn name(&self, problem: usize) -> Value {
        match &self.judged {
            ByWhom::Tests(tasks) => tasks[problem].problem.task_id().into(),
            ByWhom::Scorers { rows, .. } => {
                let fields = &rows[problem].fields;
                fields.get("id").or(fields.get("task_id")).cloned().unwrap_or_else(|| (problem + 1).into())
            }
        }
    }

    /// The kinds of the problems, which were read from this file, as a field of theirs says.
    ///
    /// # Errors
    /// Names the problem whose field is missing, or neither a text nor a list of texts.
    pub(super) fn kinds(&self, path: &Path, field: &str) -> Result<Kinds, BadInput> {
        match &self.judged {
            ByWhom::Tests(tasks) => Kinds::read(path, field, tasks.len()),
            ByWhom::Scorers { rows, .. } => Kinds::of(path, field, rows.iter().map(|row| &row.fields)),
        }
    }

    /// Whether the scores differ from the outcomes: then how far they can be trusted is a question.
    pub(super) fn has_scores_beside_outcomes(&self) -> bool {
        matches!(&self.judged, ByWhom::Scorers { config, .. } if config.scorers.len() > 1)
    }

    /// Responses of a policy. A prompt that is too long for it has none.
    pub(super) fn draw(&self, policy: &Path, options: &DrawOptions) -> anyhow::Result<Vec<Vec<Response>>> {
        let mut options = options.clone();
        if let Some(episodes) = &self.episodes {
            options.sampling = episodes.sampling(&options.sampling)?;
        }
        let generator = Generator::load(policy, &EngineConfig::default())?;
        let mut drawing = Drawing::new(self.episodes.as_ref(), policy, generator)?;
        drawing.know(self.fields().into_iter());
        responses::draw_where_possible(&mut drawing.generator, &self.prompts(), &options)
    }

    /// What an environment is told of the prompts.
    fn fields(&self) -> Vec<Arc<str>> {
        match &self.judged {
            ByWhom::Tests(tasks) => tasks.iter().map(|task| Arc::clone(&task.fields)).collect(),
            ByWhom::Scorers { rows, .. } => {
                rows.iter().map(|row| Value::Object(row.fields.clone()).to_string().into()).collect()
            }
        }
    }

    /// Judges a policy's responses.
    ///
    /// # Errors
    /// When the sandbox cannot be started, or what the scorers need cannot be used.
    pub(super) fn judge(&self, policy: &Path, responses: &[Vec<Response>]) -> anyhow::Result<Found> {
        match &self.judged {
            ByWhom::Tests(tasks) => {
                let graded = grading::grade_groups(&self.setup, tasks, responses)?.grades;
                let outcomes = graded.iter().map(|group| group.iter().map(outcome).collect());
                let outcomes = Numbers(outcomes.collect());
                Ok(Found { unjudged: outcomes.unknown(), outcomes, ..Found::default() })
            }
            ByWhom::Scorers { rows, config } => {
                let config = judging_config((**config).clone(), policy, &self.setup)?;
                let mut found = Found::default();
                found.scores = Numbers(responses.iter().map(|_| Vec::new()).collect());
                found.outcomes = found.scores.clone();
                judge(&config, drawn_to(rows, responses)?, |Judged { prompt, scored, .. }| {
                    let (score, outcome) = match scored {
                        Ok(scored) => (Some(f64::from(scored.score())), scored.outcome().map(f64::from)),
                        Err(error) => {
                            found.unjudged += 1;
                            found.first_problem.get_or_insert(error.detail);
                            (None, None)
                        }
                    };
                    found.scores.0[prompt].push(score);
                    found.outcomes.0[prompt].push(outcome);
                    Ok(())
                })?;
                Ok(found)
            }
        }
    }
}

/// 1 for a response that passed, 0 for one that did not, none for one that could not be judged.
fn outcome(grade: &sandbox::Grade) -> Option<f64> {
    grading::passed(grade).map(|passed| f64::from(u8::from(passed)))
}
