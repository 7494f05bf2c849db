//! `score_file` and `logprobs_file`: whole files, in order, with bounded memory and errors that name the
//! line.

use std::path::{Path, PathBuf};

use model::{LoadOptions, SaveOptions};
use reward_server::files::Error;
use reward_server::{FileOptions, Progress, logprobs_file, score_file};
use serde_json::{Value, json};
use types::{Rollout, RolloutParts};

use crate::tiny;

/// A folder with an input.
struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new(lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("in.jsonl"), lines).unwrap();
        Self { dir }
    }

    fn options(&self, model: &Path) -> FileOptions {
        FileOptions::new(model.to_owned(), self.dir.path().join("in.jsonl"), self.output())
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out.jsonl")
    }

    fn results(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.output()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn ragged(count: u64) -> Vec<Vec<u32>> {
    (0..count).map(|n| tiny::tokens(n, 1 + (n as usize * 37) % 120)).collect()
}

fn lines(sequences: &[Vec<u32>]) -> String {
    let line = |(id, tokens)| format!("{}\n", json!({ "id": id, "tokens": tokens, "note": "ignored" }));
    sequences.iter().enumerate().map(line).collect()
}

#[test]
fn scores_come_in_the_input_order_and_are_those_of_each_sequence_alone() {
    let sequences = ragged(200);
    let files = Files::new(&lines(&sequences));
    // Small enough that there are several windows.
    let options = FileOptions { batch_tokens: 96, ..files.options(&tiny::folder("reward-model")) };
    let mut seen = Vec::new();
    let done = score_file(&options, |progress| seen.push(progress)).unwrap();
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let size = std::fs::metadata(&options.input).unwrap().len();
    let expected = Progress { sequences: 200, tokens: tokens as u64, bytes: size, total_bytes: size };
    assert_eq!((done, seen.last()), (expected, Some(&expected)));
    assert!(seen.is_sorted_by_key(|progress| progress.sequences));
    let results = files.results();
    assert_eq!(results.len(), 200);
    for (id, (result, tokens)) in results.iter().zip(&sequences).enumerate() {
        assert_eq!(result["id"], id);
        let (found, expected) = (result["score"].as_f64().unwrap(), f64::from(tiny::expected_score(tokens)));
        assert!((found - expected).abs() < 1e-4, "line {id}: {found} is not {expected}");
    }
}

#[test]
fn logprobs_are_one_fewer_than_tokens() {
    let sequences = vec![vec![5], tiny::tokens(3, 9), tiny::tokens(4, 2)];
    let files = Files::new(&format!("{}\n\n", lines(&sequences)));
    let options = FileOptions { temperature: 0.7, ..files.options(&tiny::folder("policy")) };
    logprobs_file(&options, |_| {}).unwrap();
    for (result, tokens) in files.results().iter().zip(&sequences) {
        let found: Vec<f32> = serde_json::from_value(result["logprobs"].clone()).unwrap();
        assert_eq!(found.len(), tokens.len() - 1);
        if tokens.len() > 1 {
            let rollout = tiny::with_tokens(0, &tokens[1..], "");
            let prompt_tokens = tokens[..1].to_vec().into();
            let rollout = Rollout::new(RolloutParts { prompt_tokens, ..rollout.into_parts() }).unwrap();
            let expected = tiny::expected_logprobs(&rollout, 0.7);
            assert!(found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-4), "{found:?} {expected:?}");
        }
    }
}

/// What others would compute of each by itself.
#[test]
fn sequences_of_an_episode_see_nothing_of_each_other() {
    let (prompt, response) = (tiny::tokens(1, 5), tiny::tokens(2, 9));
    let episode = json!({"prompt_tokens": prompt, "response_tokens": response, "sequence_begins": [3, 7]});
    let first = json!({"prompt_tokens": prompt, "response_tokens": response[..3]});
    let (second, third) = (json!({"tokens": response[3..7]}), json!({"tokens": response[7..]}));
    let files = Files::new(&format!("{episode}\n{first}\n{second}\n{third}\n"));
    logprobs_file(&files.options(&tiny::folder("policy")), |_| {}).unwrap();
    let logprobs = |row: &Value| serde_json::from_value::<Vec<f32>>(row["logprobs"].clone()).unwrap();
    let rows: Vec<Vec<f32>> = files.results().iter().map(logprobs).collect();
    let expected = [&rows[1][..], &[0.0], &rows[2], &[0.0], &rows[3]].concat();
    assert_eq!((rows[0].len(), expected.len()), (9, 9));
    assert!(rows[0].iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-4), "{:?} {expected:?}", rows[0]);
    score_file(&files.options(&tiny::folder("reward-model")), |_| {}).unwrap();
    let scores: Vec<f64> = files.results().iter().map(|row| row["score"].as_f64().unwrap()).collect();
    assert!((scores[0] - scores[3]).abs() < 1e-4 && (scores[0] - scores[1]).abs() > 1e-4, "{scores:?}");
    for begins in [json!([0]), json!([7, 3]), json!([9])] {
        let wrong = json!({"prompt_tokens": prompt, "response_tokens": response, "sequence_begins": begins});
        let files = Files::new(&format!("{wrong}\n"));
        let error = logprobs_file(&files.options(&tiny::folder("policy")), |_| {}).unwrap_err();
        assert!(error.is_bad_input() && error.to_string().contains("sequence_begins"), "{error}");
    }
}

#[test]
fn ids_of_any_kind_come_back_as_they_were() {
    let files =
        Files::new("{\"id\": \"a\\u00e4\", \"tokens\": [1]}\n{\"id\": {\"x\": [1.5]}, \"tokens\": [2]}");
    score_file(&files.options(&tiny::folder("reward-model")), |_| {}).unwrap();
    let ids: Vec<Value> = files.results().into_iter().map(|mut result| result["id"].take()).collect();
    assert_eq!(ids, [json!("aä"), json!({ "x": [1.5] })]);
}

#[test]
fn the_stored_statistics_normalise_unless_told_not_to() {
    let source = tiny::folder("reward-model");
    let files = Files::new("{\"id\": 1, \"tokens\": [1, 2, 3]}");
    let folder = files.dir.path().join("rm");
    let model = model::folder::load(&source, &LoadOptions::default()).unwrap();
    model::folder::save(&folder, &model.config, &model.weights, &SaveOptions::default()).unwrap();
    let config = folder.join("config.json");
    let mut object: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let set = |object: &mut Value, mean: f64, std: f64| {
        object["sluice_reward_mean"] = json!(mean);
        object["sluice_reward_std"] = json!(std);
        std::fs::write(&config, object.to_string()).unwrap();
    };
    set(&mut object, 1.5, 0.25);
    let raw = f64::from(tiny::expected_score(&[1, 2, 3]));
    for (normalise, expected) in [(true, (raw - 1.5) / 0.25), (false, raw)] {
        let options = FileOptions { normalise, ..files.options(&folder) };
        score_file(&options, |_| {}).unwrap();
        let found = files.results()[0]["score"].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
    }
    set(&mut object, 0.0, 0.0);
    let error = score_file(&files.options(&folder), |_| {}).unwrap_err();
    assert!(error.to_string().contains("deviation 0"), "{error}");
}

#[test]
fn a_broken_line_is_named_and_there_is_no_output() {
    for (line, expected) in [
        ("{\"id\": 1, \"tokens\": [1, -2]}", ":3: invalid value: integer `-2`"),
        ("{\"id\": 1}", ":3: must have tokens (a whole sequence), or prompt_tokens and response_tokens"),
        ("{\"id\": 1, \"tokens\": []}", ":3: has no tokens"),
        ("{\"id\": 1, \"tokens\": [1, 384]}", ":3: token 384 is outside the model's vocabulary of 384"),
        (
            "{\"tokens\": [1], \"index\": 0, \"finish_reason\": \"stop\"}",
            ":3: has the tokens of a response without",
        ),
        ("{\"prompt_tokens\": [], \"response_tokens\": [1]}", ":3: has no prompt_tokens"),
        ("\u{0}\u{1}", ":3: expected value"),
    ] {
        let files = Files::new(&format!("{{\"id\": 0, \"tokens\": [1]}}\n\n{line}\n"));
        let error = score_file(&files.options(&tiny::folder("reward-model")), |_| {}).unwrap_err();
        assert!(error.is_bad_input());
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("in.jsonl:3"), "{text}");
        assert_eq!(std::fs::read_dir(files.dir.path()).unwrap().count(), 1, "only the input is there");
    }
}

#[test]
fn a_response_keeps_what_its_line_holds_and_needs_no_id() {
    let line = json!({"prompt_tokens": [1, 2], "response_tokens": [3, 4, 5], "answer": "4", "index": 1,
        "finish_reason": "stop", "logprobs": [-0.5, -0.25, -0.125]});
    let files = Files::new(&format!("{{\"tokens\": [1, 2, 3, 4, 5]}}\n{line}\n"));
    score_file(&files.options(&tiny::folder("reward-model")), |_| {}).unwrap();
    let scored = files.results();
    assert_eq!((&scored[0]["id"], &scored[1]["id"]), (&json!(1), &json!(2)), "the lines' numbers");
    assert_eq!(scored[0].as_object().unwrap().len(), 2);
    let apart = scored[0]["score"].as_f64().unwrap() - scored[1]["score"].as_f64().unwrap();
    assert!(apart.abs() < 1e-5, "prompt and response are the sequence, apart by {apart}");
    assert_eq!((&scored[1]["answer"], &scored[1]["logprobs"]), (&line["answer"], &line["logprobs"]));
    let options =
        FileOptions { logprobs_key: "ref_logprobs".to_owned(), ..files.options(&tiny::folder("policy")) };
    logprobs_file(&options, |_| {}).unwrap();
    let known = files.results();
    let whole = known[0]["logprobs"].as_array().unwrap();
    assert_eq!(known[1]["ref_logprobs"].as_array().unwrap().len(), 3, "those of the response");
    assert_eq!((whole.len(), &known[1]["logprobs"]), (4, &line["logprobs"]));
}

#[test]
fn lines_that_are_wrong_are_passed_over_when_asked() {
    let files = Files::new("{\"tokens\": [1]}\n{\"tokens\": 7}\n\u{0}\n{\"tokens\": [2]}\n");
    let options = FileOptions { keep_going: true, ..files.options(&tiny::folder("reward-model")) };
    let error = score_file(&options, |_| {}).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().starts_with("2 lines were wrong"), "{error}");
    let ids: Vec<Value> = files.results().into_iter().map(|mut result| result["id"].take()).collect();
    assert_eq!(ids, [json!(1), json!(4)]);
}

#[test]
fn a_model_of_the_other_kind_or_none_is_named() {
    let files = Files::new("");
    let error = score_file(&files.options(&tiny::folder("policy")), |_| {}).unwrap_err().to_string();
    assert!(error.contains("LlamaForCausalLM, which has no score"), "{error}");
    let error = logprobs_file(&files.options(&tiny::folder("reward-model")), |_| {}).unwrap_err().to_string();
    assert!(error.contains("has no log-probs"), "{error}");
    let error = score_file(&files.options(Path::new("/nowhere")), |_| {}).unwrap_err();
    assert!(
        matches!(error, Error::Model(_)) && error.to_string().contains("/nowhere/config.json"),
        "{error}"
    );
}

#[test]
fn an_empty_file_gives_an_empty_file() {
    let files = Files::new("");
    let done = score_file(&files.options(&tiny::folder("reward-model")), |_| {}).unwrap();
    assert_eq!((done.sequences, files.results().len()), (0, 0));
}
