//! What is graded of texts as models write them.

use extraction::{Extract, answer_text};
use sandbox::Problem;
use serde_json::{Value, json};

const WHOLE: &str = "def add(a, b):\n    return a + b\n";
const DRAFT: &str = "def add(a, b):\n    return a - b\n";

fn problem(value: Value) -> Problem {
    serde_json::from_value(value).expect("a problem")
}

fn mbpp() -> Problem {
    problem(json!({"kind": "mbpp", "task_id": "1", "test_list": ["assert add(1, 2) == 3"]}))
}

fn stdio() -> Problem {
    problem(json!({"kind": "stdio", "task_id": "1", "cases": []}))
}

fn human_eval(prompt: &str, entry_point: &str) -> Problem {
    problem(json!({"kind": "human_eval", "task_id": "1", "prompt": prompt, "entry_point": entry_point,
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n"}))
}

fn taken(problem: &Problem, response: &str) -> String {
    Extract::CodeBlock.program(problem, response).response
}

/// Prompt and response put together.
fn whole(extract: Extract, problem: &Problem, response: &str) -> String {
    let program = extract.program(problem, response);
    match program.problem.as_ref() {
        Problem::HumanEval(human_eval) => format!("{}{}", human_eval.prompt, program.response),
        _ => program.response,
    }
}

#[test]
fn the_block_that_defines_what_the_tests_call_is_taken() {
    let fence = |language: &str, code: &str| format!("```{language}\n{code}```\n");
    let python = fence("python", WHOLE);
    let texts = [
        format!("Sure:\n{python}"),
        format!("{python}Example:\n{}", fence("python", "print(add(1, 2))\n")),
        format!("{python}This prints:\n{}", fence("", "3\n")),
        format!("{python}Run:\n{}", fence("bash", "python add.py\n")),
        format!("{}{}", fence("", WHOLE), fence("python", "print(add(1, 2))\n")),
        format!("Sure:\n```python\n{WHOLE}"),
        format!("Draft:\n{}Fix:\n```python\n{WHOLE}", fence("python", DRAFT)),
        format!("{WHOLE}```"),
        format!("{WHOLE}```\nIt adds two numbers.\n"),
        format!("````python\n{WHOLE}````\n"),
        format!("~~~python\n{WHOLE}~~~\n"),
        format!(
            "> ```python\n{}> ```\n",
            WHOLE.lines().map(|line| format!("> {line}\n")).collect::<String>()
        ),
        "1. Write:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n".to_owned(),
        "- Write:\n  ```python\ndef add(a, b):\n    return a + b\n  ```\n".to_owned(),
        format!("Sure:\n{python}").replace('\n', "\r\n"),
        format!("<think>\n{}no\n</think>\n{python}", fence("python", DRAFT)),
        format!("<think>\nmaybe\n```python\nx = \n</think>\nHere:\n{python}"),
        format!("thoughts that the prompt began\n{}</think>\n{python}", fence("python", DRAFT)),
        format!("<answer>\n{python}</answer>"),
        format!("[BEGIN]\n{WHOLE}[DONE]\nMore."),
        format!("{WHOLE}[DONE]"),
        WHOLE.to_owned(),
    ];
    for text in texts {
        assert_eq!(taken(&mbpp(), &text).trim_end(), WHOLE.trim_end(), "{text:?}");
    }
    assert_eq!(taken(&mbpp(), "```python def add(a, b): return a + b```"), "def add(a, b): return a + b");
}

#[test]
fn fences_inside_of_code_are_code() {
    let documented =
        "def add(a, b):\n    '''\n    ```\n    add(1, 2)\n    ```\n    <b>\n    '''\n    return a + b\n";
    for fence in ["```", "````", "~~~"] {
        assert_eq!(taken(&mbpp(), &format!("{fence}python\n{documented}{fence}\n")), documented);
    }
}

#[test]
fn thoughts_are_no_answer() {
    assert_eq!(answer_text("<think>a</think>b"), "b");
    assert_eq!(answer_text("a</think>b</think>c"), "c");
    assert_eq!(answer_text("<think>a"), "");
    assert_eq!(answer_text("a < b"), "a < b");
    let truncated = format!("<think>\n```python\n{WHOLE}```\nlet me check that it handles");
    assert_eq!(taken(&mbpp(), &truncated), "");
    assert_eq!(Extract::Whole.program(&mbpp(), &truncated).response, truncated);
}

#[test]
fn blocks_that_belong_together_are_put_together() {
    let helper = "def plus(a, b):\n    return a + b\n";
    let main = "def add(a, b):\n    return plus(a, b)\n";
    let text = format!("First:\n```python\n{helper}```\nThen:\n```python\n{main}```\n");
    assert_eq!(taken(&mbpp(), &text), format!("{helper}\n{main}"));
    // A draft is no help.
    let text = format!("```python\n{DRAFT}```\n```python\n{WHOLE}```\n");
    assert_eq!(taken(&mbpp(), &text), WHOLE);
}

#[test]
fn a_program_is_the_last_block_of_python() {
    let square = "print(int(input()) ** 2)\n";
    let texts = [
        format!("```python\n{square}```\nInput:\n```\n2\n```\nOutput:\n```\n4\n```\n"),
        format!("The starter was\n```python\n# YOUR CODE HERE\n```\nand mine\n```python\n{square}```\n"),
        format!("```\n{square}```"),
        square.to_owned(),
    ];
    for text in texts {
        assert_eq!(taken(&stdio(), &text), square, "{text:?}");
    }
}

#[test]
fn a_prompt_is_continued_or_replaced() {
    let stub = "import math\n\n@cache\ndef add(a, b):\n    \"\"\"Adds.\"\"\"\n";
    let (problem, config) = (human_eval(stub, "add"), Extract::CodeBlock);
    // As OpenAI's harness has it.
    assert_eq!(whole(config, &problem, "    return a + b\n"), format!("{stub}    return a + b\n"));
    let body = "```python\n    return a + b\n```\n";
    assert_eq!(whole(config, &problem, body), format!("{stub}    return a + b\n"));
    let closed = "    return a + b\n```\nThis adds.\n";
    assert_eq!(whole(config, &problem, closed), format!("{stub}    return a + b\n"));
    // A whole function takes the place of the unfinished one.
    assert_eq!(whole(config, &problem, WHOLE), format!("import math\n\n{WHOLE}"));
    let bare = human_eval("def add(a, b):", "add");
    assert_eq!(whole(config, &bare, &format!("```python\n{WHOLE}```")), WHOLE);
    assert_eq!(whole(config, &bare, " return a + b"), "def add(a, b): return a + b");
    let trimmed = human_eval(stub.trim_end(), "add");
    assert_eq!(whole(config, &trimmed, body), format!("{stub}    return a + b\n"));
    let class = human_eval("from typing import *\n\n", "Solution().add");
    let solution = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b\n";
    let text = format!("```python\n{solution}```\n```python\nSolution().add(1, 2)\n```");
    assert_eq!(whole(config, &class, &text), format!("from typing import *\n\n{solution}"));
}

#[test]
fn imports_of_the_future_come_first() {
    let future = "from __future__ import annotations\n";
    let stub = "\"\"\"A module.\"\"\"\nimport math\n\ndef add(a, b):\n    \"\"\"Adds.\"\"\"\n";
    let program = whole(Extract::CodeBlock, &human_eval(stub, "add"), &format!("{future}\n{WHOLE}"));
    assert_eq!(program, format!("{future}\"\"\"A module.\"\"\"\nimport math\n\n\n{WHOLE}"));
    let long = "from __future__ import (\n    annotations,\n)\n";
    assert_eq!(taken(&mbpp(), &format!("import math\n{long}{WHOLE}")), format!("{long}import math\n{WHOLE}"));
    let kept = human_eval(&format!("{future}{stub}"), "add");
    assert_eq!(
        whole(Extract::CodeBlock, &kept, "    return a + b\n"),
        format!("{future}{stub}    return a + b\n")
    );
}
