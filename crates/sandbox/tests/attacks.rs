//! The attack corpus: every program of `tests/attacks/` in both tiers.
//!
//! Programs that try to get out are otherwise right and say so only where they got nowhere; programs that try to pass are
//! wrong. The header of each names the verdicts it may have. Each runs twice in a row on the same zygotes, so that what it
//! leaves for the next run is found by itself, and then an honest program has to be accepted and the census has to be what
//! it was.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/arena.rs"]
mod arena;

use std::time::Duration;

use arena::{Census, Program, RIGHT};
use sandbox::{Tier, Verdict};

fn survive(name: &str, tier: Tier) {
    let _alone = arena::alone();
    let program = Program::load("attacks", name);
    let expected = program.expected(tier);
    let grader = arena::grader(tier);
    let honest = || {
        let grade = grader.grade(&arena::problem("increment"), RIGHT, &arena::tight()).unwrap();
        assert_eq!(grade.verdict, Verdict::Accepted, "an honest program beside {name}: {}", grade.detail);
    };
    honest();
    // Every zygote that the pool starts by itself is there.
    let deadline = arena::Moment::now() + Duration::from_secs(20);
    while grader.stats().idle_candidates + grader.stats().idle_testers < 4 && arena::Moment::now() < deadline
    {
        std::thread::yield_now();
    }
    let before = Census::take();
    for _ in 0..2 {
        let limits = program.limits();
        let grade = grader.grade(&program.problem, &program.source, &limits).unwrap();
        assert!(
            expected.contains(&grade.verdict),
            "{name} in tier {tier}: {} ({}), expected {expected:?}",
            grade.verdict,
            grade.detail
        );
        assert!(grade.detail.is_ascii() && !grade.detail.contains(char::is_control), "{:?}", grade.detail);
        assert!(grade.wall < limits.wall + Duration::from_millis(500), "took {:?}", grade.wall);
    }
    for _ in 0..3 {
        honest();
    }
    before.await_again(Duration::from_secs(10));
    let discarded = grader.stats().zygotes_discarded;
    assert_eq!(discarded, 0, "an attack reached a zygote");
    drop(grader);
    assert_eq!(arena::descendants(std::process::id()), [], "processes left by a dropped grader");
}

macro_rules! attacks {
    ($($name:literal $tier_a:ident $tier_b:ident)*) => {
        $(
            #[test]
            fn $tier_a() {
                survive($name, Tier::A);
            }

            #[test]
            fn $tier_b() {
                survive($name, Tier::B);
            }
        )*

        const LISTED: &[&str] = &[$($name),*];
    };
}

attacks! {
    "01-busy-loop" attack_01_busy_loop_tier_a attack_01_busy_loop_tier_b
    "02-sleep" attack_02_sleep_tier_a attack_02_sleep_tier_b
    "03-ignores-signals" attack_03_ignores_signals_tier_a attack_03_ignores_signals_tier_b
    "04-one-huge-block" attack_04_one_huge_block_tier_a attack_04_one_huge_block_tier_b
    "05-grows-in-steps" attack_05_grows_in_steps_tier_a attack_05_grows_in_steps_tier_b
    "06-touches-reserved-memory" attack_06_touches_reserved_memory_tier_a attack_06_touches_reserved_memory_tier_b
    "06-touches-shared-memory" attack_06_touches_shared_memory_tier_a attack_06_touches_shared_memory_tier_b
    "07-deep-recursion" attack_07_deep_recursion_tier_a attack_07_deep_recursion_tier_b
    "07-stack-smash" attack_07_stack_smash_tier_a attack_07_stack_smash_tier_b
    "08-arithmetic-in-c" attack_08_arithmetic_in_c_tier_a attack_08_arithmetic_in_c_tier_b
    "08-catastrophic-regex" attack_08_catastrophic_regex_tier_a attack_08_catastrophic_regex_tier_b
    "08-huge-integer-text" attack_08_huge_integer_text_tier_a attack_08_huge_integer_text_tier_b
    "09-fork-bomb" attack_09_fork_bomb_tier_a attack_09_fork_bomb_tier_b
    "10-thread-bomb" attack_10_thread_bomb_tier_a attack_10_thread_bomb_tier_b
    "11-descriptors" attack_11_descriptors_tier_a attack_11_descriptors_tier_b
    "12-disk-fill-in-many-files" attack_12_disk_fill_in_many_files_tier_a attack_12_disk_fill_in_many_files_tier_b
    "12-disk-fill" attack_12_disk_fill_tier_a attack_12_disk_fill_tier_b
    "13-a-million-files" attack_13_a_million_files_tier_a attack_13_a_million_files_tier_b
    "14-sparse-file" attack_14_sparse_file_tier_a attack_14_sparse_file_tier_b
    "15-deep-folders" attack_15_deep_folders_tier_a attack_15_deep_folders_tier_b
    "16-endless-bytes" attack_16_endless_bytes_tier_a attack_16_endless_bytes_tier_b
    "16-endless-complaints" attack_16_endless_complaints_tier_a attack_16_endless_complaints_tier_b
    "16-endless-lines" attack_16_endless_lines_tier_a attack_16_endless_lines_tier_b
    "17-broken-output" attack_17_broken_output_tier_a attack_17_broken_output_tier_b
    "17-terminal-escapes-in-an-error" attack_17_terminal_escapes_in_an_error_tier_a attack_17_terminal_escapes_in_an_error_tier_b
    "18-deep-syntax-tree" attack_18_deep_syntax_tree_tier_a attack_18_deep_syntax_tree_tier_b
    "18-nested-parentheses" attack_18_nested_parentheses_tier_a attack_18_nested_parentheses_tier_b
    "18-ten-megabyte-line" attack_18_ten_megabyte_line_tier_a attack_18_ten_megabyte_line_tier_b
    "18-zip-bomb" attack_18_zip_bomb_tier_a attack_18_zip_bomb_tier_b
    "19-core-dump" attack_19_core_dump_tier_a attack_19_core_dump_tier_b
    "20-memory-elsewhere" attack_20_memory_elsewhere_tier_a attack_20_memory_elsewhere_tier_b
    "20-scratch-memory" attack_20_scratch_memory_tier_a attack_20_scratch_memory_tier_b
    "21-children-outlive-the-parent" attack_21_children_outlive_the_parent_tier_a attack_21_children_outlive_the_parent_tier_b
    "22-secrets" attack_22_secrets_tier_a attack_22_secrets_tier_b
    "23-network" attack_23_network_tier_a attack_23_network_tier_b
    "24-unix-sockets" attack_24_unix_sockets_tier_a attack_24_unix_sockets_tier_b
    "25-pidfd-getfd" attack_25_pidfd_getfd_tier_a attack_25_pidfd_getfd_tier_b
    "25-process-vm-readv" attack_25_process_vm_readv_tier_a attack_25_process_vm_readv_tier_b
    "25-ptrace" attack_25_ptrace_tier_a attack_25_ptrace_tier_b
    "26-kill-others" attack_26_kill_others_tier_a attack_26_kill_others_tier_b
    "26-signals-to-itself" attack_26_signals_to_itself_tier_a attack_26_signals_to_itself_tier_b
    "27-daemon" attack_27_daemon_tier_a attack_27_daemon_tier_b
    "28-inherited-descriptors" attack_28_inherited_descriptors_tier_a attack_28_inherited_descriptors_tier_b
    "29-traps-in-the-scratch-folder" attack_29_traps_in_the_scratch_folder_tier_a attack_29_traps_in_the_scratch_folder_tier_b
    "30-tampering" attack_30_tampering_tier_a attack_30_tampering_tier_b
    "31-chroot" attack_31_chroot_tier_a attack_31_chroot_tier_b
    "31-clone-into-a-namespace" attack_31_clone_into_a_namespace_tier_a attack_31_clone_into_a_namespace_tier_b
    "31-mount" attack_31_mount_tier_a attack_31_mount_tier_b
    "31-open-by-handle" attack_31_open_by_handle_tier_a attack_31_open_by_handle_tier_b
    "31-pivot-root" attack_31_pivot_root_tier_a attack_31_pivot_root_tier_b
    "31-setns" attack_31_setns_tier_a attack_31_setns_tier_b
    "31-unshare" attack_31_unshare_tier_a attack_31_unshare_tier_b
    "32-io-uring" attack_32_io_uring_tier_a attack_32_io_uring_tier_b
    "33-keyring" attack_33_keyring_tier_a attack_33_keyring_tier_b
    "34-locks" attack_34_locks_tier_a attack_34_locks_tier_b
    "35-32-bit-call" attack_35_32_bit_call_tier_a attack_35_32_bit_call_tier_b
    "35-bpf" attack_35_bpf_tier_a attack_35_bpf_tier_b
    "35-perf-event" attack_35_perf_event_tier_a attack_35_perf_event_tier_b
    "35-personality" attack_35_personality_tier_a attack_35_personality_tier_b
    "35-reboot" attack_35_reboot_tier_a attack_35_reboot_tier_b
    "35-userfaultfd" attack_35_userfaultfd_tier_a attack_35_userfaultfd_tier_b
    "35-x32-call" attack_35_x32_call_tier_a attack_35_x32_call_tier_b
    "36-raises-its-limits" attack_36_raises_its_limits_tier_a attack_36_raises_its_limits_tier_b
    "37-set-user-id-programs" attack_37_set_user_id_programs_tier_a attack_37_set_user_id_programs_tier_b
    "38-terminal" attack_38_terminal_tier_a attack_38_terminal_tier_b
    "39-state-between-runs" attack_39_state_between_runs_tier_a attack_39_state_between_runs_tier_b
    "40-other-programs" attack_40_other_programs_tier_a attack_40_other_programs_tier_b
    "41-exit-at-once" attack_41_exit_at_once_tier_a attack_41_exit_at_once_tier_b
    "42-interrupt" attack_42_interrupt_tier_a attack_42_interrupt_tier_b
    "42-system-exit-at-the-top" attack_42_system_exit_at_the_top_tier_a attack_42_system_exit_at_the_top_tier_b
    "42-system-exit" attack_42_system_exit_tier_a attack_42_system_exit_tier_b
    "43-exit-in-c" attack_43_exit_in_c_tier_a attack_43_exit_in_c_tier_b
    "44-exit-in-a-thread" attack_44_exit_in_a_thread_tier_a attack_44_exit_in_a_thread_tier_b
    "45-exit-hooks" attack_45_exit_hooks_tier_a attack_45_exit_hooks_tier_b
    "46-prints-success" attack_46_prints_success_tier_a attack_46_prints_success_tier_b
    "47-equal-to-everything" attack_47_equal_to_everything_tier_a attack_47_equal_to_everything_tier_b
    "47-integer-equal-to-everything" attack_47_integer_equal_to_everything_tier_a attack_47_integer_equal_to_everything_tier_b
    "47-list-of-anything" attack_47_list_of_anything_tier_a attack_47_list_of_anything_tier_b
    "47-poses-as-integer" attack_47_poses_as_integer_tier_a attack_47_poses_as_integer_tier_b
    "48-patched-builtins" attack_48_patched_builtins_tier_a attack_48_patched_builtins_tier_b
    "49-frames" attack_49_frames_tier_a attack_49_frames_tier_b
    "50-garbage-collector" attack_50_garbage_collector_tier_a attack_50_garbage_collector_tier_b
    "51-tracing" attack_51_tracing_tier_a attack_51_tracing_tier_b
    "52-answers-in-advance" attack_52_answers_in_advance_tier_a attack_52_answers_in_advance_tier_b
    "52-colliding-keys" attack_52_colliding_keys_tier_a attack_52_colliding_keys_tier_b
    "52-deep-nesting" attack_52_deep_nesting_tier_a attack_52_deep_nesting_tier_b
    "52-forged-verdict" attack_52_forged_verdict_tier_a attack_52_forged_verdict_tier_b
    "52-huge-length" attack_52_huge_length_tier_a attack_52_huge_length_tier_b
    "52-objects-that-are-no-values" attack_52_objects_that_are_no_values_tier_a attack_52_objects_that_are_no_values_tier_b
    "52-odd-numbers" attack_52_odd_numbers_tier_a attack_52_odd_numbers_tier_b
    "53-reads-the-tests" attack_53_reads_the_tests_tier_a attack_53_reads_the_tests_tier_b
    "54-test-frameworks" attack_54_test_frameworks_tier_a attack_54_test_frameworks_tier_b
    "55-named-like-the-tester" attack_55_named_like_the_tester_tier_a attack_55_named_like_the_tester_tier_b
    "56-stopped-clock" attack_56_stopped_clock_tier_a attack_56_stopped_clock_tier_b
    "57-lookup-table" attack_57_lookup_table_tier_a attack_57_lookup_table_tier_b
    "58-changes-its-arguments-in-a-copy" attack_58_changes_its_arguments_in_a_copy_tier_a attack_58_changes_its_arguments_in_a_copy_tier_b
    "58-changes-its-arguments" attack_58_changes_its_arguments_tier_a attack_58_changes_its_arguments_tier_b
    "59-lazy-answer" attack_59_lazy_answer_tier_a attack_59_lazy_answer_tier_b
    "59-lazy-arithmetic" attack_59_lazy_arithmetic_tier_a attack_59_lazy_arithmetic_tier_b
    "60-kills-the-tester" attack_60_kills_the_tester_tier_a attack_60_kills_the_tester_tier_b
    "61-ends-an-iteration" attack_61_ends_an_iteration_tier_a attack_61_ends_an_iteration_tier_b
    "62-program-writes-beside-stdout" attack_62_program_writes_beside_stdout_tier_a attack_62_program_writes_beside_stdout_tier_b
    "62-wrong-program-prints-the-answer" attack_62_wrong_program_prints_the_answer_tier_a attack_62_wrong_program_prints_the_answer_tier_b
    "63-program-floods" attack_63_program_floods_tier_a attack_63_program_floods_tier_b
}

#[test]
fn every_file_is_listed_and_every_class_has_one() {
    let listed = LISTED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(arena::programs("attacks"), listed);
    for class in 1..=60 {
        let prefix = format!("{class:02}-");
        assert!(LISTED.iter().any(|name| name.starts_with(&prefix)), "no program of class {class}");
    }
}
