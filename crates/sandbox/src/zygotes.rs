//! Zygotes of one tier, kept ready by a thread of their own.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::config::GraderConfig;
use crate::error::Error;
use crate::pool::{Pool, ZygoteKind};
use crate::spawner::ZygoteSpawner;
use crate::tier::Tier;
use crate::tier_probe::TierProbe;

/// A pool and the thread that fills it. Dropping it ends and reaps every process it has started, once all
/// leases are given back.
#[derive(Debug)]
pub(crate) struct Zygotes {
    tier: Tier,
    pool: Arc<Pool>,
    spawner: Option<JoinHandle<()>>,
}

impl Zygotes {
    /// Finds the helper and the interpreter, proves that the tier works by running a program in it, and
    /// starts a pool of zygotes of these kinds.
    ///
    /// # Errors
    /// Where any of that is impossible; in particular [`Error::BelowMinimumTier`].
    pub(crate) fn start(config: &GraderConfig, kinds: &[ZygoteKind]) -> Result<Self, Error> {
        check(config)?;
        let tier_probe = TierProbe::new(config)?;
        let tier = tier_probe.choose(config)?;
        let launcher = tier_probe.launcher(tier)?;
        if config.hide_server {
            nix::sys::prctl::set_dumpable(false)
                .map_err(|errno| Error::io("make the server unreadable")(errno.into()))?;
        }
        let pool = Pool::new(config, kinds)?;
        let spawner = ZygoteSpawner::new(Arc::clone(&pool), launcher, config.cold, config.start_timeout);
        let (ended, failure) = mpsc::sync_channel(1);
        let pool_of_spawner = Arc::clone(&pool);
        let spawner = std::thread::Builder::new()
            .name("zygote-spawner".to_owned())
            .spawn(move || {
                if let Err(error) = spawner.run() {
                    // Callers must not wait for zygotes that nobody starts.
                    pool_of_spawner.close();
                    let _ = ended.try_send(error);
                }
            })
            .map_err(Error::io("start the spawner thread"))?;
        let zygotes = Self { tier, pool, spawner: Some(spawner) };
        // The first caller finds a sandbox ready, or there is none.
        match zygotes.pool.lease(kinds, config.start_timeout) {
            Ok(lease) => lease.healthy(),
            Err(error) => {
                let stopped = failure.try_recv().map(Error::io("run the spawner thread"));
                return Err(stopped.unwrap_or(error));
            }
        }
        Ok(zygotes)
    }

    /// The tier in use.
    pub(crate) fn tier(&self) -> Tier {
        self.tier
    }

    /// Where zygotes are leased.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

impl Drop for Zygotes {
    fn drop(&mut self) {
        self.pool.close();
        if let Some(spawner) = self.spawner.take() {
            // A spawner that panicked has nothing left to wait for.
            let _ = spawner.join();
        }
    }
}

fn check(config: &GraderConfig) -> Result<(), Error> {
    if config.workers == 0 {
        return Err(Error::Config(
            "workers is 0; at least one grading must be possible at a time".to_owned(),
        ));
    }
    if config.max_runs_per_zygote == 0 {
        return Err(Error::Config("max_runs_per_zygote is 0; a zygote must do at least one run".to_owned()));
    }
    if let Some(path) = config.import_paths.iter().find(|path| !path.is_absolute() || !path.is_dir()) {
        return Err(Error::Config(format!(
            "import path {} is not an absolute path of a folder",
            path.display()
        )));
    }
    Ok(())
}
