//! Commands over files fit each other: what one writes another reads, `-` is standard input and output, names
//! are optional, and a line that is wrong is said and, when asked, passed over.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::{TaughtModels, TinyRing, binary};

/// Runs `sluice` with this standard input.
fn sluice(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(binary("sluice").unwrap());
    command.args(arguments).env("OMP_NUM_THREADS", "1").env("OMP_WAIT_POLICY", "passive");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that never reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A command with input of one right line, a wrong one, and another right one.
struct Case {
    arguments: Vec<String>,
    right: [Value; 2],
    wrong: Value,
    /// Lines of output for the right ones.
    results: usize,
}

fn case(arguments: &str, right: [Value; 2], wrong: Value, results: usize) -> Case {
    Case { arguments: arguments.split(' ').map(str::to_owned).collect(), right, wrong, results }
}

/// Every command that reads lines, from standard input to standard output. No line has an id.
fn cases(models: &TaughtModels, folder: &Path) -> Vec<Case> {
    let TaughtModels { policy, reward_model, .. } = models;
    let (policy, reward_model) = (path(policy), path(reward_model));
    let problem = |id: &str| {
        json!({"task_id": id, "prompt": "def add(a, b):\n", "entry_point": "add",
            "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n"})
    };
    let problems = folder.join("problems.jsonl");
    fs::write(&problems, format!("{}\n", problem("T/0"))).unwrap();
    let sample = |text: &str| json!({"id": "T/0", "text": text});
    let response = |score: f64| {
        json!({"id": "p", "prompt_tokens": [1, 2], "response_tokens": [3, 4], "logprobs": [-1.0, -2.0],
            "ref_logprobs": [-1.0, -2.0], "score": score, "answer": "7", "text": " 7.", "finish_reason": "stop"})
    };
    let sums =
        [json!({"prompt": "1 plus 1 is", "answer": "2"}), json!({"prompt": "2 plus 3 is", "answer": 5})];
    let mut cases = vec![
        case(
            &format!("generate --model {policy} --input - --output - --max-new-tokens 4"),
            sums,
            json!({"prompt": 7}),
            2,
        ),
        case(
            &format!("score --model {reward_model} --input - --output -"),
            [json!({"tokens": [1, 2]}), response(0.0)],
            json!({"tokens": [1], "finish_reason": "stop"}),
            2,
        ),
        case(
            &format!("logprobs --model {policy} --input - --output -"),
            [json!({"tokens": [1, 2]}), response(0.0)],
            json!({"tokens": [100_000]}),
            2,
        ),
        case(
            &format!("grade --problems {} --samples - --output -", path(&problems)),
            [sample("    return a + b\n"), sample("    return a\n")],
            json!({"id": "T/1", "text": ""}),
            2,
        ),
        case(
            "filter --input - --output -",
            [response(0.0), response(1.0)],
            json!({"id": "p", "score": "high"}),
            2,
        ),
    ];
    let problems = [problem("T/0"), problem("T/1")];
    cases.extend(judging_cases(policy, folder, [response(0.0), response(1.0)], problems));
    cases
}

/// Those that judge or train.
fn judging_cases(policy: &str, folder: &Path, responses: [Value; 2], problems: [Value; 2]) -> Vec<Case> {
    let sums =
        [json!({"prompt": "1 plus 1 is", "answer": "2"}), json!({"prompt": "2 plus 3 is", "answer": 5})];
    let replayed = folder.join("replayed");
    vec![
        case(
            "r2 --input - --json",
            [
                json!({"id": 1, "score": 0.5, "passed": true}),
                json!({"prompt_id": 2, "score": 0.1, "outcome": 0}),
            ],
            json!({"id": 1, "score": 0.5, "outcome": 7}),
            1,
        ),
        case(
            &format!("replay --policy {policy} --batch - --output {} --json", path(&replayed)),
            responses.clone(),
            json!({"prompt_tokens": [1], "response_tokens": [2], "score": 1.0}),
            1,
        ),
        case(
            &format!("eval --model {policy} --problems - --scorer numeric-match --field answer --output -"),
            sums,
            json!({"question": "1 plus 1 is", "answer": "2"}),
            2,
        ),
        case(
            &format!("eval --model {policy} --responses - --scorer numeric-match --field answer --output -"),
            responses.clone(),
            json!({"prompt_tokens": [1], "text": "no tokens of the response"}),
            2,
        ),
        case(
            &format!("eval --model {policy} --problems - --output - --max-new-tokens 4"),
            problems,
            json!({"task_id": "T/2", "prompt": "no tests"}),
            2,
        ),
    ]
}

#[test]
fn every_command_reads_and_writes_pipes_and_passes_over_wrong_lines_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let models = TaughtModels::new(folder.path()).unwrap();
    for Case { arguments, right: [first, second], wrong, results } in cases(&models, folder.path()) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let what = arguments.join(" ");
        let right = sluice(&arguments, &format!("{first}\n{second}\n"));
        assert_eq!(
            (right.status.code(), lines(&right).len()),
            (Some(0), results),
            "{what}: {}",
            said(&right)
        );
        // `replay` refuses a folder that holds its results.
        let _ = fs::remove_dir_all(folder.path().join("replayed"));

        let mixed = format!("{first}\n{wrong}\n{second}\n");
        let ended = sluice(&arguments, &mixed);
        assert_eq!(ended.status.code(), Some(2), "{what}: {}", said(&ended));
        assert!(said(&ended).contains("-:2: "), "{what}: {}", said(&ended));
        assert!(said(&ended).contains("--keep-going"), "{what}: {}", said(&ended));

        let kept = sluice(&[&arguments[..], &["--keep-going"]].concat(), &mixed);
        assert_eq!((kept.status.code(), lines(&kept).len()), (Some(2), results), "{what}: {}", said(&kept));
        assert!(
            said(&kept).contains("-:2: ") && said(&kept).contains("passed over"),
            "{what}: {}",
            said(&kept)
        );
        assert!(said(&kept).contains("1 line was wrong"), "{what}: {}", said(&kept));
        let _ = fs::remove_dir_all(folder.path().join("replayed"));
    }
}

/// The output of a command that must succeed, as the next one's input.
fn through(arguments: &str, input: &str) -> String {
    let output = sluice(&arguments.split(' ').collect::<Vec<_>>(), input);
    assert!(output.status.success(), "{arguments}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_one_command_writes_the_next_one_reads() {
    let folder = tempfile::tempdir().unwrap();
    let models = TaughtModels::new(folder.path()).unwrap();
    let (policy, reward_model) = (path(&models.policy), path(&models.reward_model));
    let prompts: String = fs::read_to_string(&models.prompts)
        .unwrap()
        .lines()
        .take(6)
        .map(|line| format!("{line}\n"))
        .collect();
    let drawn = through(
        &format!("generate --model {policy} --input - --output - --max-new-tokens 8 --n 4 --temperature 1"),
        &prompts,
    );
    let first: Value = serde_json::from_str(drawn.lines().next().unwrap()).unwrap();
    assert_eq!((&first["id"], &first["prompt"]), (&json!(1), &json!("0 plus 0 is")));
    assert_eq!(
        first["response_tokens"].as_array().unwrap().len(),
        first["logprobs"].as_array().unwrap().len()
    );

    let scored = through(&format!("score --model {reward_model} --input - --output -"), &drawn);
    let referenced =
        through(&format!("logprobs --model {policy} --input - --output - --key ref_logprobs"), &scored);
    for line in referenced.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let numbers = |key: &str| -> Vec<f64> { serde_json::from_value(line[key].clone()).unwrap() };
        // The policy is its own reference, and was sampled at temperature 1.
        for (drawn, reference) in numbers("logprobs").into_iter().zip(numbers("ref_logprobs")) {
            assert!((drawn - reference).abs() < 1e-3, "{line}");
        }
    }
    let filtered = through("filter --strategy best-random --input - --output -", &referenced);
    assert_eq!(filtered.lines().filter(|line| line.contains("\"kept\":true")).count(), 12, "{filtered}");
    let output = folder.path().join("replayed");
    through(&format!("replay --policy {policy} --batch - --output {}", path(&output)), &filtered);
    assert!(output.join("metrics.json").is_file() && output.join("policy/config.json").is_file());

    // Problems with tests are prompts as they are, and what is written to them is graded by the tests.
    let problems = folder.path().join("problems.jsonl");
    let problem = |n: usize| {
        json!({"task_id": format!("t/{n}"), "prompt": format!("{n} plus 0 is"), "entry_point": "f",
               "test": "def check(f):\n    assert f() == 1\n"})
    };
    let text: String = (0..3).map(|n| format!("{}\n", problem(n))).collect();
    fs::write(&problems, &text).unwrap();
    let drawn_of_problems =
        through(&format!("generate --model {policy} --input - --output - --max-new-tokens 4 --n 2"), &text);
    let grade = format!("grade --problems {} --samples - --output - --k 1,2", path(&problems));
    let graded = through(&grade, &drawn_of_problems);
    let verdicts: Vec<Value> = graded.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts.len(), 6, "{graded}");
    for (at, verdict) in verdicts.iter().enumerate() {
        let of = (&verdict["task_id"], &verdict["index"]);
        assert_eq!(of, (&json!(format!("t/{}", at / 2)), &json!(at % 2)), "{verdict}");
        assert!(
            verdict["passed"] == false && verdict["verdict"].is_string(),
            "a sum is no program: {verdict}"
        );
    }

    // Judged by the field that came with the prompts all the way, in JSON.
    let eval = format!("eval --model {policy} --responses - --scorer numeric-match --field response --json");
    let judged: Value = serde_json::from_str(&through(&eval, &drawn)).unwrap();
    assert_eq!((&judged["prompts"], &judged["responses"]), (&json!(6), &json!(24)), "{judged}");
    let rate = judged["pass"]["pass@1"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&rate) && judged["score"]["mean"] == judged["outcome"]["mean"], "{judged}");
    assert!(
        judged["interval_95"]["pass@1"].is_array() && judged["score"]["half_width"].is_number(),
        "{judged}"
    );
}

#[test]
fn a_model_is_judged_by_any_scorer_on_any_data() {
    let folder = tempfile::tempdir().unwrap();
    let models = TaughtModels::new(folder.path()).unwrap();
    let policy = path(&models.policy);
    let csv = folder.path().join("sums.csv");
    let rows: String = (0..24).map(|n| format!("{} plus {} is,{}\n", n % 8, n / 8, n % 8 + n / 8)).collect();
    fs::write(&csv, format!("question,answer\n{rows}")).unwrap();
    let eval = |more: &str| {
        let arguments =
            format!("eval --model {policy} --problems {} --column prompt=question --json {more}", path(&csv));
        serde_json::from_str::<Value>(&through(&arguments, "")).unwrap()
    };
    let numeric = eval("--scorer numeric-match --field answer --max-new-tokens 8 --n 4 --temperature 1");
    let exact = eval("--scorer {kind=\"regex\",pattern=\"[0-9]\"} --max-new-tokens 8 --n 4 --temperature 1");
    assert_eq!((&numeric["prompts"], &exact["prompts"]), (&json!(24), &json!(24)));
    let rate = |judged: &Value| judged["pass"]["pass@1"].as_f64().unwrap();
    assert!(rate(&numeric) <= rate(&exact), "who names the sum names a number: {numeric} {exact}");
    assert!(rate(&exact) > 0.3, "it was taught to answer with a number: {exact}");

    // The engine is told what generate tells it; how many responses it draws at a time changes none.
    let narrow = "--scorer numeric-match --field answer --max-new-tokens 8 --n 4 --temperature 1";
    assert_eq!(eval(&format!("{narrow} --threads 1 --max-sequences 3")), numeric);
    assert_eq!(eval(&format!("{narrow} --dtype bf16"))["prompts"], json!(24));
    let prompts = path(&models.prompts);
    for command in [
        vec!["eval", "--problems", prompts, "--scorer", "numeric-match"],
        vec!["generate", "--input", prompts, "--output", "-"],
    ] {
        for (flag, value, words) in
            [("--dtype", "int4", "must be f32, bf16 or f16"), ("--max-sequences", "0", "max_sequences")]
        {
            let output = sluice(&[&command[..], &["--model", policy, flag, value]].concat(), "");
            let said = said(&output);
            assert!(output.status.code() == Some(2) && said.contains(words), "{command:?} {flag}: {said}");
        }
    }

    // A recipe's scorers, by its yardstick; the reward model is what it would train on.
    let recipe = folder.path().join("judge.toml");
    let text = format!(
        "[[reward_server.scorers]]\nkind = 'reward-model'\nmodel = '{}'\n[[reward_server.scorers]]\n\
         kind = 'numeric-match'\nfield = 'answer'\nweight = 0\nyardstick = true\n",
        path(&models.reward_model)
    );
    fs::write(&recipe, text).unwrap();
    let judged = eval(&format!("--scorers {} --max-new-tokens 8 --n 4 --temperature 1", path(&recipe)));
    assert_eq!(judged["pass"], numeric["pass"], "the same responses by the same yardstick");
    assert_ne!(judged["score"]["mean"], judged["outcome"]["mean"], "{judged}");

    // What cannot be scored is no score.
    let missing = eval("--scorer exact-match --field solution --max-new-tokens 8");
    assert_eq!((&missing["score"], &missing["not_scored"]), (&Value::Null, &json!({"unsupported": 24})));
    assert!(missing["first_problem"].as_str().unwrap().contains("solution"), "{missing}");
    // And what is no problem says how it can be judged.
    let output = sluice(&["eval", "--model", policy, "--problems", path(&models.prompts)], "");
    assert!(output.status.code() == Some(2) && said(&output).contains("--scorer"), "{}", said(&output));
}

#[test]
fn mathematics_has_an_outcome_in_the_ring_by_the_scorer_that_is_marked() {
    let folder = tempfile::tempdir().unwrap();
    let ring = TinyRing::new(folder.path()).unwrap().with("coordinator.batches=12").with(
        "reward_server.scorers=[{kind='regex', pattern='[0-9]'}, \
         {kind='length-penalty', weight=0.01, free_tokens=1, max_tokens=12}, \
         {kind='numeric-match', field='response', weight=0, yardstick=true}]",
    );
    // A sandbox beside the ring leaves it a core, unless it is told otherwise.
    let ring = ring.with("reward_server.sandbox.extract=whole");
    let mut running = ring.start().unwrap();
    running.wait_for_batches(6).unwrap();
    // The best scores of wrong answers, with their texts, while the run goes on.
    let addresses = fs::read_to_string(ring.output().join("ring/coordinator.address.json")).unwrap();
    let addresses: Value = serde_json::from_str(&addresses).unwrap();
    let page = format!("http://{}/worst.json", addresses["metrics"].as_str().unwrap());
    let mut answer = ureq::get(&page).call().unwrap();
    assert_eq!(answer.status(), 200);
    let worst: Vec<Value> = serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap();
    let scores: Vec<f64> = worst.iter().map(|example| example["score"].as_f64().unwrap()).collect();
    assert!(!worst.is_empty() && scores.windows(2).all(|pair| pair[0] >= pair[1]), "{worst:?}");
    for example in &worst {
        assert!(example["outcome"].as_f64().unwrap() < 1.0, "{example}");
        assert!(
            example["text"].is_string() && example["prompt"].as_str().unwrap().contains(" plus "),
            "{example}"
        );
    }
    let (status, said) = running.end().unwrap();
    assert!(status.success(), "{said}");
    // And when it is over, for `sluice dashboard`.
    let left: Value =
        serde_json::from_str(&fs::read_to_string(ring.output().join("ring/worst.json")).unwrap()).unwrap();
    let examples = left["examples"].as_array().unwrap();
    assert!(!examples.is_empty() && examples.iter().all(|example| example["text"].is_string()), "{left}");
    let told = fs::read_to_string(ring.output().join("ring/config/reward-server-0.toml")).unwrap();
    let told: toml::Table = told.parse().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    let workers = told["sandbox"]["grader"]["workers"].as_integer().unwrap();
    assert_eq!(workers, i64::try_from((cores - 1).max(1)).unwrap(), "{told}");
    let steps = ring.steps().unwrap();
    assert_eq!(steps.len(), 12);
    for step in steps.values() {
        let outcome = step["outcome_mean"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&outcome), "{step}");
        let score = step["score_mean"].as_f64().unwrap();
        assert!(
            outcome <= score + 0.01 + 1e-6,
            "a right number is a number, and no part of the score: {step}"
        );
    }
    // How far the score can be trusted, and whether it looks gamed, follow from that outcome.
    let last = &steps[&12];
    assert!(last["reliability"]["unfiltered"].is_number(), "{last}");
    assert!(last["detectors"].as_object().is_some_and(|found| !found.is_empty()), "{last}");
    let samples = fs::read_to_string(ring.output().join("ring/samples.jsonl")).unwrap();
    let outcomes =
        samples.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["outcome"].clone());
    assert!(outcomes.clone().count() > 0 && outcomes.clone().all(|outcome| outcome.is_number()), "{samples}");
}

#[test]
fn a_reader_that_leaves_ends_a_command_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String =
        (0..20_000).map(|n| format!("{}\n", json!({"id": n / 4, "index": n % 4, "score": n % 7}))).collect();
    let input = folder.path().join("scored.jsonl");
    fs::write(&input, lines).unwrap();
    let mut command = Command::new(binary("sluice").unwrap());
    command.args(["filter", "--input", path(&input), "--output", "-"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), said(&output)), (Some(141), String::new()));
}

/// Whoever prints: output that nobody takes, and output that cannot be written, are no panics.
#[test]
fn no_command_panics_when_its_output_is_closed_or_full() {
    let folder = tempfile::tempdir().unwrap();
    let ring = folder.path().join("run/ring");
    fs::create_dir_all(ring.join("config")).unwrap();
    fs::write(ring.join("steps.jsonl"), "").unwrap();
    let (run, recipe) = (folder.path().join("run"), folder.path().join("recipe.toml"));
    fs::write(&recipe, "name = 'x'\n").unwrap();
    let commands: [&[&str]; 9] = [
        &["--help"],
        &["--version"],
        &["init", "grpo", "--output", "-"],
        &["check-config", path(&recipe)],
        &["check-config", "--schema"],
        &["compare", path(&run)],
        &["report", path(&run), "--output", "-"],
        &["doctor", "--folder", path(folder.path())],
        &["doctor", "--json"],
    ];
    for arguments in commands {
        let command = || {
            let mut command = Command::new(binary("sluice").unwrap());
            command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped());
            command
        };
        let mut child = command().stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let closed = child.wait_with_output().unwrap();
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = command().stdout(full).output().unwrap();
        for output in [closed, full] {
            let said = said(&output);
            assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{arguments:?}: {said}");
            assert!(output.status.code().is_some(), "{arguments:?} was ended by a signal");
        }
    }
}
