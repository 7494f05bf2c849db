//! Results that every rank knows of, so that what one rank could not do no rank takes for done.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;
use super::manifest::Files;
use crate::error::Result;
use crate::ranks::Ranks;

/// A rank's result as the other ranks are told of it.
#[derive(Serialize, Deserialize)]
enum RankResult<T> {
    Done(T),
    Failed { reason: String, is_disk_full: bool },
}

impl<T: Serialize> RankResult<&T> {
    fn encode(result: &std::result::Result<T, Error>) -> Vec<u8> {
        let told = match result {
            Ok(value) => RankResult::Done(value),
            Err(error) => {
                RankResult::Failed { reason: error.to_string(), is_disk_full: error.is_disk_full() }
            }
        };
        serde_json::to_vec(&told).expect("what ranks tell each other is JSON")
    }
}

impl<T: DeserializeOwned> RankResult<T> {
    fn decode(rank: usize, bytes: &[u8]) -> std::result::Result<Self, Error> {
        serde_json::from_slice(bytes).map_err(|error| Error::Rank {
            rank,
            reason: error.to_string(),
            is_disk_full: false,
        })
    }
}

/// Rank 0's result, on every rank. What another rank gives is not looked at, unless it is an error of its
/// own.
///
/// # Errors
/// This rank's error or rank 0's, a rank that is lost.
pub(super) fn of_first<T: Serialize + DeserializeOwned>(
    ranks: &Ranks,
    result: std::result::Result<T, Error>,
) -> Result<T> {
    let bytes = ranks.of_first(RankResult::encode(&result))?;
    let first = RankResult::decode(0, &bytes)?;
    match (result?, first) {
        (own, RankResult::Done(_)) if ranks.rank() == 0 => Ok(own),
        (_, RankResult::Done(value)) => Ok(value),
        (_, RankResult::Failed { reason, is_disk_full }) => {
            Err(Error::Rank { rank: 0, reason, is_disk_full }.into())
        }
    }
}

/// The files of all ranks, or this rank's error, or the first one of another rank.
///
/// # Errors
/// A rank that is lost.
pub(super) fn all_files(
    ranks: &Ranks,
    result: std::result::Result<Files, Error>,
) -> Result<std::result::Result<Files, Error>> {
    let told = ranks.gather(RankResult::encode(&result))?;
    if result.is_err() {
        return Ok(result);
    }
    let mut files = Files::new();
    for (rank, bytes) in told.iter().enumerate() {
        match RankResult::<Files>::decode(rank, bytes)? {
            RankResult::Done(own) => files.extend(own),
            RankResult::Failed { reason, is_disk_full } => {
                return Ok(Err(Error::Rank { rank, reason, is_disk_full }));
            }
        }
    }
    Ok(Ok(files))
}
