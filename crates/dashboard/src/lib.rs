//! The page of a run: its curves, its ring, what its filter keeps, its samples, members, events and logs.
//!
//! Everything is read from the run's ring folder (`ring/` of a run's output), so that a run looks the same
//! while it lives, after it has ended, and beside others. Only how things are at this moment is asked of the
//! coordinator: in its own process, or over HTTP from `sluice dashboard`.
//!
//! | file of the folder | written by | shown as |
//! |---|---|---|
//! | `steps.jsonl` | coordinator | curves of training |
//! | `metrics.jsonl` | [`Recorder`] | curves of every process |
//! | `status.json` | [`Recorder`] | ring, members and accounting of a run that is over |
//! | `samples.jsonl` | coordinator | samples, and the filter at work |
//! | `logs/*.log` | the processes | events and logs |
//! | `config/*.toml` | `sluice run` | the table of differences |
//!
//! What is not there is not shown. Curves are downsampled here: a chart of 100,000 steps costs the browser
//! what one of 1,000 costs, and zooming in asks for the steps between. The page is HTML, CSS and scripts in
//! `page/`, without a build step; uPlot draws its charts. Nothing is loaded from the network.

mod api;
mod assets;
mod axis;
mod catalog;
mod columns;
mod config;
mod downsample;
mod events;
mod exposition;
mod fetch;
mod follower;
mod groups;
mod logs;
mod measurements;
mod recorder;
mod report;
mod run;
mod samples;
mod steps;
mod worst;

pub use api::Dashboard;
pub use catalog::Field;
pub use columns::flatten;
pub use config::told_keys;
pub use follower::{Continuity, Follower};
pub use recorder::Recorder;
pub use report::{ReportTable, report};
pub use run::{Error, Run, ring_folders};
pub use steps::Steps;
