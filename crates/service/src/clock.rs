//! What a role asks the clock for.

use std::time::SystemTime;

use tokio::time::Instant;

/// A number that no other life of this process has: the time of this call in microseconds since the Unix
/// epoch. A member that restarts comes back under its name with a greater one, as long as the machine's clock
/// does not go back.
pub fn new_incarnation() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Waits until the deadline, or for ever where there is none: an arm of a `select!` that may be switched off.
pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn incarnations_grow() {
        let first = new_incarnation();
        // 2025 in microseconds.
        assert!(first > 1_735_689_600_000_000 && new_incarnation() >= first);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_deadline_ends_the_wait() {
        let begun = Instant::now();
        sleep_until(Some(begun + Duration::from_secs(3))).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        assert!(tokio::time::timeout(Duration::from_secs(3600), sleep_until(None)).await.is_err());
    }
}
