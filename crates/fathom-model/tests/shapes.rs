//! The shapes of published reasoning data sets, with hand-written expected contents.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use fathom_model::{
    Answer, Message, Prompt, PromptContent, Remarks, RowFields, Trace, TraceContent,
};
use serde_json::{Value, json};

fn traces_with(row: &Value, fields: &RowFields) -> Result<Vec<Trace>, String> {
    Trace::read(Path::new("t.jsonl"), 1, &row.to_string(), fields, &mut Remarks::new())
        .map_err(|error| error.to_string())
}

/// The turns before the answer, and the answers.
fn contents(row: &Value) -> Result<(Vec<Message>, Vec<Answer>), String> {
    contents_with(row, &RowFields::default())
}

fn contents_with(row: &Value, fields: &RowFields) -> Result<(Vec<Message>, Vec<Answer>), String> {
    let mut messages = Vec::new();
    let mut answers = Vec::new();
    for trace in traces_with(row, fields)? {
        let (turns, answer) = match trace.content {
            TraceContent::Text { prompt, output } => {
                (vec![Message::user(prompt)], Answer::Text(output))
            }
            TraceContent::Messages { conversation, answer } => (conversation.messages, answer),
            TraceContent::Ids { .. } => panic!("ids"),
        };
        messages = turns;
        answers.push(answer);
    }
    Ok((messages, answers))
}

fn text(answer: &str) -> Answer {
    Answer::Text(answer.to_owned())
}

const Q: &str = "What is 6 times 7?";
const A: &str = "<think>\nSix sevens.\n</think>\n\n42";

#[test]
fn each_shape_is_read_as_expected() {
    let user = || vec![Message::user(Q)];
    let system = |text: &str| vec![Message::new("system", text), Message::user(Q)];
    let turns = json!([{"role": "user", "content": Q}, {"role": "assistant", "content": A}]);
    let asked = json!([{"role": "user", "content": Q}]);
    for (name, row, messages, answers) in [
        (
            "OpenR1-Math-220k",
            json!({"problem": Q, "solution": "6·7=42", "answer": "42",
                   "generations": [A, "forty-two"], "correctness_math_verify": [true, false],
                   "messages": turns}),
            user(),
            vec![text(A), text("forty-two")],
        ),
        (
            "OpenThoughts-114k",
            json!({"system": "Think.", "conversations": [{"from": "user", "value": Q},
                   {"from": "assistant", "value": A}]}),
            system("Think."),
            vec![text(A)],
        ),
        (
            "OpenThoughts-114k, metadata",
            json!({"problem": Q, "deepseek_reasoning": "Six sevens.", "deepseek_solution": "42",
                   "ground_truth_solution": "x", "domain": "math"}),
            user(),
            vec![Answer::Thought { thinking: "Six sevens.".to_owned(), answer: "42".to_owned() }],
        ),
        (
            "s1K",
            json!({"question": Q, "solution": "42", "cot_type": "math",
                   "thinking_trajectories": ["Six sevens."], "attempt": "42."}),
            user(),
            vec![Answer::Thought { thinking: "Six sevens.".to_owned(), answer: "42.".to_owned() }],
        ),
        (
            "s1K-1.1",
            json!({"question": Q, "solution": "42", "gemini_thinking_trajectory": "g",
                   "gemini_attempt": "h", "deepseek_thinking_trajectory": "Six sevens.",
                   "deepseek_attempt": "42."}),
            user(),
            vec![Answer::Thought { thinking: "Six sevens.".to_owned(), answer: "42.".to_owned() }],
        ),
        (
            "Mixture-of-Thoughts",
            json!({"messages": turns, "num_tokens": 12}),
            user(),
            vec![text(A)],
        ),
        (
            "NuminaMath",
            json!({"source": "s", "problem": Q, "solution": A, "messages": turns}),
            user(),
            vec![text(A)],
        ),
        (
            "OpenMathReasoning",
            json!({"problem": Q, "generated_solution": A, "expected_answer": "42"}),
            user(),
            vec![text(A)],
        ),
        (
            "Llama-Nemotron-Post-Training",
            json!({"input": asked, "output": A, "system_prompt": "detailed thinking on",
                   "reasoning": "on"}),
            system("detailed thinking on"),
            vec![text(A)],
        ),
        ("TRL, text", json!({"prompt": Q, "completion": A}), user(), vec![text(A)]),
        (
            "TRL, messages",
            json!({"prompt": asked, "completion": [{"role": "assistant", "content": A}]}),
            user(),
            vec![text(A)],
        ),
        (
            "Alpaca",
            json!({"instruction": "Multiply.", "input": "6 7", "output": "42"}),
            vec![Message::user("Multiply.\n6 7")],
            vec![text("42")],
        ),
        (
            "Alpaca without input",
            json!({"instruction": Q, "input": "", "output": "42"}),
            user(),
            vec![text("42")],
        ),
        (
            "ShareGPT",
            json!({"conversations": [{"from": "system", "value": "S"},
                   {"from": "human", "value": Q}, {"from": "gpt", "value": A}]}),
            system("S"),
            vec![text(A)],
        ),
        ("prompt and response", json!({"prompt": Q, "response": A}), user(), vec![text(A)]),
        (
            "several outputs",
            json!({"prompt": Q, "output": [A, "42"]}),
            user(),
            vec![text(A), text("42")],
        ),
        ("GSM8K", json!({"question": Q, "answer": A}), user(), vec![text(A)]),
        ("LIMO", json!({"question": Q, "solution": A, "answer": "42"}), user(), vec![text(A)]),
    ] {
        assert_eq!(contents(&row), Ok((messages, answers)), "{name}");
    }
}

#[test]
fn thinking_in_a_message_stays_a_separate_field() {
    let row = json!({"messages": [{"role": "user", "content": Q},
        {"role": "assistant", "reasoning_content": "Six sevens.", "content": "42"}]});
    let (_, answers) = contents(&row).unwrap();
    let [Answer::Turn(turn)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(turn.fields["reasoning_content"], "Six sevens.");
}

#[test]
fn rows_of_ids() {
    let row = json!({"input_ids": [[1, 2], [3]], "attention_mask": [[0, 1], [1]]});
    let contents: Vec<_> =
        traces_with(&row, &RowFields::default()).unwrap().into_iter().map(|t| t.content).collect();
    let ids = |ids: &[u32]| TraceContent::Ids { input_ids: ids.to_vec(), prompt_len: 0 };
    assert_eq!(contents, [ids(&[2]), ids(&[3])]);
    let row = json!({"input_ids": [[1, 2], [3]], "attention_mask": [[0, 1]]});
    let message = traces_with(&row, &RowFields::default()).unwrap_err();
    assert!(message.contains("`attention_mask` has 1 rows but `input_ids` has 2"), "{message}");
}

#[test]
fn two_readings_are_named() {
    let turns = json!([{"role": "user", "content": Q}, {"role": "assistant", "content": A}]);
    for (row, parts) in [
        (json!({"prompt": Q, "completion": "a", "response": "b"}), ["`completion`", "`response`"]),
        (json!({"prompt": Q, "chosen": "a", "rejected": "b"}), ["`chosen`", "`rejected`"]),
        (
            json!({"messages": turns, "solution": "other"}),
            ["`messages`", "`messages` with `solution`"],
        ),
        (
            json!({"messages": turns, "conversations": [{"from": "human", "value": "x"},
            {"from": "gpt", "value": "y"}]}),
            ["`messages`", "`conversations`"],
        ),
    ] {
        let message = contents(&row).unwrap_err();
        assert!(message.starts_with("t.jsonl: line 1: can be read as "), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        assert!(message.contains("--output-field"), "{message}");
    }
    // Two readings with the same contents are not ambiguous.
    assert!(contents(&json!({"prompt": Q, "completion": A, "response": A})).is_ok());
}

#[test]
fn the_user_decides() {
    let fields = |prompt: Option<&str>, output: Option<&str>| RowFields {
        prompt: prompt.map(str::to_owned),
        output: output.map(str::to_owned),
    };
    let row =
        json!({"prompt": Q, "chosen": "a", "rejected": "b", "x": {"ask": "q", "all": ["c", "d"]}});
    let answers = |prompt, output| contents_with(&row, &fields(prompt, output));
    assert_eq!(answers(None, Some("rejected")), Ok((vec![Message::user(Q)], vec![text("b")])));
    assert_eq!(
        answers(Some("x.ask"), Some("x.all")),
        Ok((vec![Message::user("q")], vec![text("c"), text("d")]))
    );
    assert_eq!(
        answers(Some("x.ask"), Some("x.all.1")),
        Ok((vec![Message::user("q")], vec![text("d")]))
    );
    for (prompt, output, expected) in [
        (None, Some("nothing"), "has no `nothing`"),
        (Some("x.nothing"), Some("chosen"), "has no `x.nothing`"),
        (Some("prompt"), None, "has none of `output`"),
        (Some("x"), Some("chosen"), "`x` must be a string or a list of messages"),
        (None, Some("x.all.9"), "has no `x.all.9`"),
    ] {
        let message = answers(prompt, output).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_prompt_is_found_in_every_shape() {
    let prompt = |row: Value, fields: RowFields| {
        let path = Path::new("p.jsonl");
        let prompt = Prompt::read(path, 1, &row.to_string(), &fields, &mut Remarks::new());
        match prompt.map(|prompt| prompt.content).map_err(|error| error.to_string())? {
            PromptContent::Text(text) => Ok(vec![Message::user(text)]),
            PromptContent::Messages(conversation) => Ok::<_, String>(conversation.messages),
        }
    };
    let asked = json!([{"role": "user", "content": Q}]);
    let default = RowFields::default;
    for row in [
        json!({"prompt": asked}),
        json!({"input": asked, "output": A}),
        json!({"instruction": Q}),
        json!({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}),
        json!({"problem": Q, "generations": [A], "messages": asked}),
    ] {
        assert_eq!(prompt(row.clone(), default()), Ok(vec![Message::user(Q)]), "{row}");
    }
    let fields = RowFields { prompt: Some("x.ask".to_owned()), output: None };
    assert_eq!(
        prompt(json!({"prompt": "no", "x": {"ask": Q}}), fields),
        Ok(vec![Message::user(Q)])
    );
    assert!(prompt(json!({"text": Q}), default()).unwrap_err().contains("has none of `prompt`"));
}
