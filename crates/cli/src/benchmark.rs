//! Public benchmarks as their authors publish them: what of a file is asked, how, and what a response is
//! compared with.
//!
//! A base model gets a text to complete, with the usual stop texts; a model with a chat template gets the
//! question as a user's message. Nothing here is read from anywhere but the file.

mod prompts;

use std::path::Path;
use std::sync::Arc;

use sandbox::Problem;
use serde_json::{Map, Value};
use service::BadInput;
use service::jsonl::{self, Line, WrongLines};
use types::PromptContent;

use crate::grading::{ProblemLine, Task, read_problems};

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Benchmark {
    /// HumanEval (arXiv 2107.03374).
    Humaneval,
    /// MBPP (arXiv 2108.07732): the 500 problems of its test split, behind three examples of the same file.
    Mbpp,
    /// LeetCodeDataset (arXiv 2504.14655): its `query`.
    Leetcode,
    /// GSM8K (arXiv 2110.14168), without examples: the answer's number is compared.
    Gsm8k,
}

/// In which form a model is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// A text to go on with.
    Completion,
    /// A conversation, by the model's chat template.
    Chat,
}

/// What is asked, and what the responses are compared with.
#[derive(Debug)]
pub(crate) enum Questions {
    /// Problems with hidden tests.
    Tasks(Vec<Task>),
    /// Questions with a number.
    Numbers(Vec<NumberQuestion>),
}

/// A question whose answer is a number.
#[derive(Debug)]
pub(crate) struct NumberQuestion {
    /// `line N` of the file.
    pub(crate) task_id: String,
    pub(crate) prompt: PromptContent,
    /// As the file has it, with its rationale.
    pub(crate) label: String,
    /// Its whole line.
    pub(crate) fields: Arc<str>,
}

/// MBPP's test split.
const MBPP_TEST: std::ops::RangeInclusive<u64> = 11..=510;

impl Benchmark {
    /// Texts behind which no answer goes on.
    pub(crate) fn stop(self, form: Form) -> Vec<String> {
        let texts: &[&str] = match (self, form) {
            (_, Form::Chat) => &[],
            // Those of the authors' harnesses.
            (Self::Humaneval, Form::Completion) => &["\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("],
            (Self::Mbpp, Form::Completion) => &["[DONE]"],
            (Self::Gsm8k, Form::Completion) => &["\nQuestion:", "\n\n\n"],
            (Self::Leetcode, Form::Completion) => &["\n```\n"],
        };
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    /// The questions of a file.
    ///
    /// # Errors
    /// Names the file and line of what is none, unless such lines are passed over.
    pub(crate) fn read(self, path: &Path, form: Form, wrong: &WrongLines) -> Result<Questions, BadInput> {
        let found = match self {
            Self::Gsm8k => Questions::Numbers(numbers(path, form, wrong)?),
            Self::Mbpp => Questions::Tasks(mbpp(read_problems(path, wrong)?, form, wrong)?),
            Self::Humaneval | Self::Leetcode => {
                Questions::Tasks(self.functions(read_problems(path, wrong)?, form, wrong)?)
            }
        };
        if found.is_empty() {
            Err(BadInput(format!("{} holds no problem", path.display())))
        } else {
            Ok(found)
        }
    }

    fn functions(
        self,
        problems: Vec<ProblemLine>,
        form: Form,
        wrong: &WrongLines,
    ) -> Result<Vec<Task>, BadInput> {
        let prompted = problems.into_iter().filter_map(|ProblemLine { line, problem }| {
            let prompt = self.prompt_of_function(&line, form);
            wrong.sift(prompt.map(|prompt| Task { prompt, problem, fields: line.text().into() }))
        });
        prompted.collect()
    }

    fn prompt_of_function(self, line: &Line, form: Form) -> Result<PromptContent, BadInput> {
        let fields: Map<String, Value> = line.parse()?;
        let prompt = match (self, form) {
            (Self::Leetcode, _) => text(line, &fields, "query")?.to_owned(),
            (_, Form::Completion) => text(line, &fields, "prompt")?.to_owned(),
            (_, Form::Chat) => prompts::function(text(line, &fields, "prompt")?),
        };
        Ok(match form {
            Form::Completion if self == Self::Leetcode => {
                PromptContent::Text(prompts::opened_answer(&prompt))
            }
            Form::Completion => PromptContent::Text(prompt),
            Form::Chat => prompts::chat(&[], prompt),
        })
    }
}

impl Questions {
    fn is_empty(&self) -> bool {
        self.prompts().next().is_none()
    }

    /// What the model is given.
    pub(crate) fn prompts(&self) -> impl Iterator<Item = &PromptContent> {
        let (tasks, numbers): (&[Task], &[NumberQuestion]) = match self {
            Self::Tasks(tasks) => (tasks, &[]),
            Self::Numbers(numbers) => (&[], numbers),
        };
        tasks.iter().map(|task| &task.prompt).chain(numbers.iter().map(|question| &question.prompt))
    }

    /// The lines that they stand in.
    pub(crate) fn fields(&self) -> Vec<Arc<str>> {
        match self {
            Self::Tasks(tasks) => tasks.iter().map(|task| Arc::clone(&task.fields)).collect(),
            Self::Numbers(numbers) => numbers.iter().map(|question| Arc::clone(&question.fields)).collect(),
        }
    }
}

fn text<'a>(line: &Line, fields: &'a Map<String, Value>, key: &str) -> Result<&'a str, BadInput> {
    let found = fields.get(key).and_then(Value::as_str);
    found.ok_or_else(|| line.wrong(&format!("has no text {key:?}; is it the benchmark's file?")))
}

fn mbpp(problems: Vec<ProblemLine>, form: Form, wrong: &WrongLines) -> Result<Vec<Task>, BadInput> {
    let (mut examples, mut asked) = (Vec::new(), Vec::new());
    for ProblemLine { line, problem } in problems {
        let Some(read) = wrong.sift(mbpp_line(&line, &problem)) else { continue };
        match read? {
            MbppLine::Example(example) => examples.push(example),
            MbppLine::Asked(question) => asked.push((question, problem, line.text().into())),
            MbppLine::Other => {}
        }
    }
    let shots = prompts::Shots { examples };
    let prompted = asked.into_iter().map(|(question, problem, fields)| {
        let prompt = match form {
            Form::Completion => PromptContent::Text(shots.completion(&question)),
            Form::Chat => shots.chat(question),
        };
        Task { prompt, problem, fields }
    });
    Ok(prompted.collect())
}

/// What a line of MBPP is for.
enum MbppLine {
    Example(prompts::Example),
    /// A question of the test split.
    Asked(String),
    Other,
}

fn mbpp_line(line: &Line, problem: &Problem) -> Result<MbppLine, BadInput> {
    let fields: Map<String, Value> = line.parse()?;
    let id = fields.get("task_id").and_then(Value::as_u64);
    let id = id.ok_or_else(|| line.wrong("has no number \"task_id\"; is it MBPP's file?"))?;
    // The sanitised version calls it prompt.
    let said = text(line, &fields, "text").or_else(|_| text(line, &fields, "prompt"))?;
    let Problem::Mbpp(tests) = problem else { return Err(line.wrong("has no \"test_list\"")) };
    let question = prompts::described(said, &tests.test_list);
    if (2..=4).contains(&id) {
        let code = text(line, &fields, "code")?.replace("\r\n", "\n");
        return Ok(MbppLine::Example(prompts::Example { question, code }));
    }
    Ok(if MBPP_TEST.contains(&id) { MbppLine::Asked(question) } else { MbppLine::Other })
}

fn numbers(path: &Path, form: Form, wrong: &WrongLines) -> Result<Vec<NumberQuestion>, BadInput> {
    let questions = jsonl::read(path)?.filter_map(|line| {
        wrong.sift(line.and_then(|line| {
            let fields: Map<String, Value> = line.parse()?;
            let (question, label) = (text(&line, &fields, "question")?, text(&line, &fields, "answer")?);
            let prompt = match form {
                Form::Completion => PromptContent::Text(prompts::reasoned(question)),
                Form::Chat => prompts::chat(&[], prompts::boxed(question)),
            };
            Ok(NumberQuestion {
                task_id: format!("line {}", line.number()),
                prompt,
                label: label.to_owned(),
                fields: line.text().into(),
            })
        }))
    });
    questions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(lines: &[Value]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn mbpp_line(id: u64) -> Value {
        serde_json::json!({"task_id": id, "text": format!("Write f{id}."), "code": format!("def f{id}():\r\n  pass"),
            "test_list": [format!("assert f{id}() is None")], "test_setup_code": "", "challenge_test_list": []})
    }

    #[test]
    fn mbpp_is_its_test_split_behind_three_examples() {
        let file = written(&[1, 2, 3, 4, 5, 11, 510, 511].map(mbpp_line));
        let Questions::Tasks(tasks) =
            Benchmark::Mbpp.read(file.path(), Form::Completion, &WrongLines::default()).unwrap()
        else {
            panic!("no tasks")
        };
        let ids: Vec<&str> = tasks.iter().map(|task| task.problem.task_id()).collect();
        assert_eq!(ids, ["11", "510"]);
        let PromptContent::Text(prompt) = &tasks[0].prompt else { panic!("no text") };
        let shot = "You are an expert Python programmer, and here is your task: Write f2. Your code should pass \
                    these tests:\n\nassert f2() is None\n[BEGIN]\ndef f2():\n  pass\n[DONE]\n";
        assert!(prompt.starts_with(shot), "{prompt}");
        assert!(prompt.ends_with("these tests:\n\nassert f11() is None\n[BEGIN]\n"), "{prompt}");
        assert!(!prompt.contains("f5"), "{prompt}");
        let Questions::Tasks(tasks) =
            Benchmark::Mbpp.read(file.path(), Form::Chat, &WrongLines::default()).unwrap()
        else {
            panic!("no tasks")
        };
        let PromptContent::Messages(messages) = &tasks[0].prompt else { panic!("no messages") };
        let messages: Vec<Value> = serde_json::from_str(messages).unwrap();
        assert_eq!(messages.len(), 7);
        assert_eq!(messages[1]["content"], "```python\ndef f2():\n  pass\n```");
    }

    /// The first prompt of a file.
    fn first(benchmark: Benchmark, line: &Value, form: Form) -> PromptContent {
        let file = written(std::slice::from_ref(line));
        let questions = benchmark.read(file.path(), form, &WrongLines::default()).unwrap();
        questions.prompts().next().unwrap().clone()
    }

    fn question(content: &str) -> PromptContent {
        prompts::chat(&[], content.to_owned())
    }

    #[test]
    fn functions_and_sums_are_asked_in_both_forms() {
        let function = serde_json::json!({"task_id": "H/0", "prompt": "def f(x):\n    \"\"\"One more.\"\"\"\n",
            "entry_point": "f", "test": "def check(candidate):\n    assert candidate(1) == 2\n"});
        let unchanged = first(Benchmark::Humaneval, &function, Form::Completion);
        assert_eq!(unchanged, PromptContent::Text("def f(x):\n    \"\"\"One more.\"\"\"\n".to_owned()));
        assert_eq!(
            first(Benchmark::Humaneval, &function, Form::Chat),
            question(
                "Complete the following Python function. Answer with the whole function in one block of code.\n\n\
                 ```python\ndef f(x):\n    \"\"\"One more.\"\"\"\n```"
            )
        );
        let mut solution = function;
        solution["query"] = "Write Solution.f.\n".into();
        solution["prompt"] = "import math\n".into();
        solution["entry_point"] = "Solution().f".into();
        assert_eq!(
            first(Benchmark::Leetcode, &solution, Form::Completion),
            PromptContent::Text("Write Solution.f.\n\n### Answer\n```python\n".to_owned())
        );
        assert_eq!(first(Benchmark::Leetcode, &solution, Form::Chat), question("Write Solution.f.\n"));
        let sum = serde_json::json!({"question": " How much is 1 + 1? ", "answer": "#### 2"});
        assert_eq!(
            first(Benchmark::Gsm8k, &sum, Form::Completion),
            PromptContent::Text("Question: How much is 1 + 1?\nAnswer: Let's think step by step.".to_owned())
        );
        assert_eq!(
            first(Benchmark::Gsm8k, &sum, Form::Chat),
            question("How much is 1 + 1?\n\nThink step by step, and put the final answer into \\boxed{}.")
        );
    }

    #[test]
    fn a_text_to_complete_ends_where_the_authors_end_it_and_a_conversation_by_itself() {
        let all = [Benchmark::Humaneval, Benchmark::Mbpp, Benchmark::Leetcode, Benchmark::Gsm8k];
        assert!(all.iter().all(|benchmark| benchmark.stop(Form::Chat).is_empty()));
        let stop = all.map(|benchmark| benchmark.stop(Form::Completion));
        assert_eq!(stop[0], ["\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("]);
        assert_eq!((&stop[1][..], &stop[2][..]), (&["[DONE]".to_owned()][..], &["\n```\n".to_owned()][..]));
        assert_eq!(stop[3], ["\nQuestion:", "\n\n\n"]);
    }

    #[test]
    fn what_is_not_the_benchmarks_file_is_named_with_its_line() {
        let file = written(&[serde_json::json!({"question": "1 + 1?", "answer": "#### 2"})]);
        let Ok(Questions::Numbers(numbers)) =
            Benchmark::Gsm8k.read(file.path(), Form::Chat, &WrongLines::default())
        else {
            panic!("no numbers")
        };
        assert_eq!((numbers[0].task_id.as_str(), numbers[0].label.as_str()), ("line 1", "#### 2"));
        let file = written(&[serde_json::json!({"question": "1 + 1?"})]);
        let error =
            Benchmark::Gsm8k.read(file.path(), Form::Chat, &WrongLines::default()).unwrap_err().to_string();
        assert!(error.contains(":1") && error.contains("answer"), "{error}");
    }
}
