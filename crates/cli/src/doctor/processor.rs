//! The processor: what it can do, and how much of it is ours.

use super::Finding;

/// Which instructions the engine finds.
pub(super) fn instructions() -> Finding {
    const WHAT: &str = "instructions";
    #[cfg(target_arch = "x86_64")]
    {
        let has_512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if has_512 && is_x86_feature_detected!("avx512bf16") {
            Finding::ok(WHAT, "AVX-512 with bf16: products in bf16 cost half of f32")
        } else if has_512 {
            Finding::ok(WHAT, "AVX-512 without bf16: f32 is as fast as bf16 here")
        } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            Finding::ok(WHAT, "AVX2 with FMA")
        } else {
            let advice = "generation on the CPU is several times slower; take a machine from 2013 on, or let the \
                          hypervisor show its host's processor";
            Finding::warn(WHAT, "neither AVX2 nor FMA", advice)
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let advice = "the engine has no hand-written instructions for it, and Sluice is not tested on it";
        Finding::warn(WHAT, format!("{} processor", std::env::consts::ARCH), advice)
    }
}

/// Cores, and what of them a container may use.
pub(super) fn cores() -> Finding {
    const WHAT: &str = "cores";
    // Affinity and cgroup quotas are in it.
    let ours = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let there = text.lines().filter(|line| line.starts_with("processor")).count().max(ours);
    let found = if ours < there { format!("{ours} of this machine's {there}") } else { ours.to_string() };
    if ours >= 2 {
        Finding::ok(WHAT, found)
    } else {
        let advice = "four roles share one core: runs work, slowly; give the process more (cpuset, --cpus, limits.cpu)";
        Finding::warn(WHAT, found, advice)
    }
}
