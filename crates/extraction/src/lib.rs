//! From a response's text to the program that is graded: the same in the ring, in `/get_reward`, in `grade`,
//! `eval` and `preferences`.
//!
//! ```
//! use extraction::Extract;
//! # let problem = r#"{"kind": "mbpp", "task_id": "1", "test_list": ["assert add(1, 2) == 3"]}"#;
//! # let problem: sandbox::Problem = serde_json::from_str(problem)?;
//!
//! let response = "<think>Hm.</think>So:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds.";
//! assert_eq!(Extract::CodeBlock.program(&problem, response).response, "def add(a, b):\n    return a + b\n");
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! 1. [`answer_text`]: what follows the model's thoughts.
//! 2. Of its fenced blocks (as CommonMark has them) the last that defines what the tests call, with earlier
//!    blocks that it needs; where none does, the last block of Python.
//! 3. The prompt, where the response continues one; `from __future__` first.

mod answer;
mod blocks;
mod config;
mod names;
mod program;

pub use answer::{THOUGHTS_TOKENS, answer_text, marked, python_blocks};
pub use blocks::has_code_block;
pub use config::Extract;
pub use program::Program;
