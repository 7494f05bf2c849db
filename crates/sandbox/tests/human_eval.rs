//! No right answer is rejected, and the verdicts are those of OpenAI's harness.

#![allow(clippy::unwrap_used, reason = "the lint does not know that helpers of tests are tests")]

#[path = "support/mutants.rs"]
mod mutants;
#[path = "support/problems.rs"]
mod problems;

use mutants::{agree, mutants, oracle};
use problems::{in_parallel, problems};
use sandbox::{Grader, GraderConfig, Limits, Problem, Record, Tier, Verdict};

fn grader(tier: Tier) -> Grader {
    Grader::start(GraderConfig { tier: Some(tier), ..GraderConfig::default() }).unwrap()
}

fn every_reference_is_accepted(tier: Tier) {
    let (grader, records) = (grader(tier), problems());
    let grades = in_parallel(&records, |record| {
        let reference = record.reference.as_deref().unwrap();
        grader.grade(&record.problem, reference, &Limits::default()).unwrap()
    });
    let rejected: Vec<_> = records
        .iter()
        .zip(&grades)
        .filter(|(_, grade)| grade.verdict != Verdict::Accepted || grade.passed != grade.total)
        .map(|(record, grade)| (record.problem.task_id(), grade))
        .collect();
    assert!(rejected.is_empty(), "{} of {}: {rejected:#?}", rejected.len(), records.len());
}

#[test]
fn every_reference_is_accepted_in_tier_a() {
    every_reference_is_accepted(Tier::A);
}

#[test]
fn every_reference_is_accepted_in_tier_b() {
    every_reference_is_accepted(Tier::B);
}

#[test]
fn an_empty_response_is_never_accepted() {
    let grader = grader(Tier::A);
    for record in problems() {
        let grade = grader.grade(&record.problem, "    pass\n", &Limits::default()).unwrap();
        // Our own problem that works in place is the only one that returns nothing, and its test looks at the
        // list.
        assert_ne!(grade.verdict, Verdict::Accepted, "{}", record.problem.task_id());
        assert!(grade.passed < grade.total);
    }
}

#[test]
fn verdicts_on_edited_references_are_those_of_the_harness() {
    let records = problems();
    let cases: Vec<(&Record, String)> = records
        .iter()
        .flat_map(|record| mutants(record).into_iter().map(move |mutant| (record, mutant)))
        .collect();
    let programs: Vec<String> = cases
        .iter()
        .map(|(record, mutant)| {
            let Problem::HumanEval(problem) = &record.problem else { panic!("{record:?}") };
            format!("{}{mutant}\n{}\ncheck({})\n", problem.prompt, problem.test, problem.entry_point)
        })
        .collect();
    let halves: Vec<&[String]> = programs.chunks(programs.len().div_ceil(2)).collect();
    let expected = in_parallel(&halves, |half| oracle(half)).concat();
    let grader = grader(Tier::A);
    let limits = Limits { cpu: std::time::Duration::from_secs(2), ..Limits::default() };
    let grades =
        in_parallel(&cases, |(record, mutant)| grader.grade(&record.problem, mutant, &limits).unwrap());
    let mut accepted = 0;
    for (((record, mutant), grade), expected) in cases.iter().zip(&grades).zip(&expected) {
        let task = record.problem.task_id();
        assert!(grade.verdict.judges_response(), "{task}: {} ({})\n{mutant}", grade.verdict, grade.detail);
        let passed = grade.verdict == Verdict::Accepted;
        let said = format!("{task}: {} ({})\n{mutant}", grade.verdict, grade.detail);
        assert!(agree(grade.verdict, *expected), "{expected:?}: {said}");
        accepted += u32::from(passed);
    }
    println!("{} edited references, {accepted} of them still right, no verdict differs", cases.len());
    assert!(
        cases.len() > 3 * records.len() && accepted > 0 && accepted < u32::try_from(cases.len()).unwrap() / 2
    );
}
