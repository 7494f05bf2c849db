//! Grades programs by hidden tests: `cargo build -p sandbox && cargo run -p sandbox --example grade`
//!
//! The first command builds `sluice-sandbox-init`, which has to lie beside the program, or one folder up.

use std::error::Error;

use sandbox::{Grader, GraderConfig, Limits, Mbpp, Problem};

fn main() -> Result<(), Box<dyn Error>> {
    let problem = Problem::Mbpp(Mbpp {
        task_id: "area".to_owned(),
        test_list: vec!["assert area(2, 3) == 6".to_owned(), "assert area(0, 9) == 0".to_owned()],
        ..Mbpp::default()
    });
    let grader = Grader::start(GraderConfig::default())?;
    println!("tier {}", grader.tier());
    for program in [
        "def area(width, height):\n    return width * height\n",
        "def area(width, height):\n    return width + height\n",
        "def area(width, height):\n    open('/etc/passwd').read()\n",
    ] {
        let grade = grader.grade(&problem, program, &Limits::default())?;
        println!("{} {}/{} {}", grade.verdict, grade.passed, grade.total, grade.detail);
    }
    Ok(())
}
