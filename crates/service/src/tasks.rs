//! Named tasks: what happens when one fails is declared with it, and a shutdown waits for all of them by
//! name.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

/// Tasks that may wait to be started.
const SPAWN_QUEUE: usize = 256;

/// What the failure of a task means for the process. A panic is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The process shuts down and exits with 1, naming the task.
    Shutdown,
    /// The failure is logged; the process goes on.
    Log,
}

type BoxedFuture = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

struct Task {
    name: String,
    on_error: OnError,
    future: BoxedFuture,
}

/// Starts tasks while the process runs.
#[derive(Debug, Clone)]
pub struct Spawner {
    queue: mpsc::Sender<Task>,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("name", &self.name).field("on_error", &self.on_error).finish()
    }
}

impl Spawner {
    /// Starts a task. Once the process shuts down, new tasks are dropped unstarted.
    pub async fn spawn<F>(&self, name: impl Into<String>, on_error: OnError, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        // The queue is closed only when the process has ended its work.
        let _ = self.queue.send(Task { name: name.into(), on_error, future: Box::pin(future) }).await;
    }
}

/// The tasks of a process. They are added while the process is built and start with [`TaskSet::run`].
#[derive(Debug)]
pub struct TaskSet {
    waiting: Vec<Task>,
    spawner: Spawner,
    /// Where [`Spawner`]s put tasks for the running set.
    queue: mpsc::Receiver<Task>,
}

impl Default for TaskSet {
    fn default() -> Self {
        let (sender, queue) = mpsc::channel(SPAWN_QUEUE);
        Self { waiting: Vec::new(), spawner: Spawner { queue: sender }, queue }
    }
}

impl TaskSet {
    /// Adds a task that starts with the set.
    pub fn add<F>(&mut self, name: impl Into<String>, on_error: OnError, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.waiting.push(Task { name: name.into(), on_error, future: Box::pin(future) });
    }

    /// A handle with which running tasks start further ones.
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Runs all tasks until every one has ended. When `token` is cancelled they have `grace_period` to do so;
    /// what has not ended by then is aborted and is an error.
    ///
    /// # Errors
    /// The first failed task whose failure means shutdown, or the tasks that outlasted the grace period.
    pub async fn run(self, token: CancellationToken, grace_period: Duration) -> anyhow::Result<()> {
        let mut running = Running::default();
        let Self { waiting, spawner, mut queue } = self;
        // Kept until the end: while it lives, the queue is open and `recv` waits.
        let _spawner = spawner;
        for task in waiting {
            running.start(task);
        }
        let mut first_failure = None;
        let deadline = async {
            token.cancelled().await;
            tokio::time::sleep(grace_period).await;
        };
        tokio::pin!(deadline);
        while !running.tasks.is_empty() {
            tokio::select! {
                ended = running.tasks.join_next_with_id() => {
                    if let Some(failure) = ended.and_then(|ended| running.end(ended)) {
                        token.cancel();
                        first_failure.get_or_insert(failure);
                    }
                }
                Some(task) = queue.recv() => {
                    if !token.is_cancelled() {
                        running.start(task);
                    }
                }
                () = &mut deadline => {
                    let names: Vec<String> = running.names.into_values().map(|(name, _)| name).collect();
                    running.tasks.abort_all();
                    let unfinished = anyhow::anyhow!(
                        "not finished within the grace period of {grace_period:?}: {}",
                        names.join(", ")
                    );
                    return Err(first_failure.unwrap_or(unfinished));
                }
            }
        }
        first_failure.map_or(Ok(()), Err)
    }
}

#[derive(Default)]
struct Running {
    tasks: JoinSet<anyhow::Result<()>>,
    names: BTreeMap<Id, (String, OnError)>,
}

impl Running {
    fn start(&mut self, task: Task) {
        let id = self.tasks.spawn(task.future).id();
        self.names.insert(id, (task.name, task.on_error));
    }

    /// Notes that a task has ended; yields its failure if that means shutdown.
    fn end(
        &mut self,
        ended: Result<(Id, anyhow::Result<()>), tokio::task::JoinError>,
    ) -> Option<anyhow::Error> {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(anyhow::anyhow!("{error}"))),
        };
        let (name, on_error) = self.names.remove(&id)?;
        let failure = result.err()?.context(format!("task {name}"));
        match on_error {
            OnError::Shutdown => Some(failure),
            OnError::Log => {
                tracing::warn!(error = format!("{failure:#}"), "task failed");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_failure_stops_the_others_and_is_named() {
        let (token, mut tasks) = (CancellationToken::new(), TaskSet::default());
        let stopped = token.clone();
        tasks.add("patient", OnError::Shutdown, async move {
            stopped.cancelled().await;
            Ok(())
        });
        tasks.add("culprit", OnError::Shutdown, async { anyhow::bail!("no more tokens") });
        let error = tasks.run(token, GRACE).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "task culprit: no more tokens");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_failure() {
        let mut tasks = TaskSet::default();
        tasks.add("clumsy", OnError::Shutdown, async { panic!("oops") });
        let error = tasks.run(CancellationToken::new(), GRACE).await.unwrap_err();
        assert!(format!("{error:#}").starts_with("task clumsy: "), "{error:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_logged_failure_stops_nobody() {
        let mut tasks = TaskSet::default();
        tasks.add("optional", OnError::Log, async { anyhow::bail!("never mind") });
        let spawner = tasks.spawner();
        let (done, finished) = tokio::sync::oneshot::channel();
        tasks.add("main", OnError::Shutdown, async move {
            let late = async move {
                let _ = done.send(());
                Ok(())
            };
            spawner.spawn("late", OnError::Log, late).await;
            finished.await?;
            Ok(())
        });
        tasks.run(CancellationToken::new(), GRACE).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_outlasts_the_grace_period_is_named() {
        let (token, mut tasks) = (CancellationToken::new(), TaskSet::default());
        tasks.add("deaf", OnError::Shutdown, std::future::pending());
        let started = tokio::time::Instant::now();
        token.cancel();
        let error = tasks.run(token, GRACE).await.unwrap_err();
        assert_eq!(started.elapsed(), GRACE);
        assert!(error.to_string().ends_with(": deaf"), "{error}");
    }
}
