//! The words in which models are asked.

use serde_json::{Value, json};
use types::PromptContent;

/// A question with its answer.
#[derive(Debug)]
pub(super) struct Example {
    pub(super) question: String,
    pub(super) code: String,
}

/// Examples that stand in front of a question.
#[derive(Debug)]
pub(super) struct Shots {
    pub(super) examples: Vec<Example>,
}

impl Shots {
    /// As Austin et al. (arXiv 2108.07732) ask.
    pub(super) fn completion(&self, question: &str) -> String {
        let shots = self.examples.iter();
        let shots: String = shots
            .map(|shot| format!("{}\n[BEGIN]\n{}\n[DONE]\n\n", shot.question, shot.code.trim_end()))
            .collect();
        format!("{shots}{question}\n[BEGIN]\n")
    }

    /// The same as turns of a conversation.
    pub(super) fn chat(&self, question: String) -> PromptContent {
        let turns = self.examples.iter().flat_map(|shot| {
            let answer = format!("```python\n{}\n```", shot.code.trim_end());
            [message("user", &shot.question), message("assistant", &answer)]
        });
        chat(&turns.collect::<Vec<Value>>(), question)
    }
}

/// MBPP's question.
pub(super) fn described(said: &str, tests: &[String]) -> String {
    let tests = tests.join("\n");
    format!(
        "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n{tests}",
        said.trim()
    )
}

/// A function to complete, as a question.
pub(super) fn function(prompt: &str) -> String {
    format!(
        "Complete the following Python function. Answer with the whole function in one block of code.\n\n\
         ```python\n{}\n```",
        prompt.trim_end()
    )
}

/// A question whose answer a base model begins.
pub(super) fn opened_answer(question: &str) -> String {
    format!("{}\n\n### Answer\n```python\n", question.trim_end())
}

/// A question of arithmetic to complete.
pub(super) fn reasoned(question: &str) -> String {
    format!("Question: {}\nAnswer: Let's think step by step.", question.trim())
}

/// A question of arithmetic to answer.
pub(super) fn boxed(question: &str) -> String {
    format!("{}\n\nThink step by step, and put the final answer into \\boxed{{}}.", question.trim())
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// A conversation that ends with a question.
pub(super) fn chat(before: &[Value], question: String) -> PromptContent {
    let mut messages = before.to_vec();
    messages.push(message("user", &question));
    PromptContent::Messages(Value::Array(messages).to_string())
}
