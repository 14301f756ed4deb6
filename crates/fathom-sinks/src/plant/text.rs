//! The texts of the traces: small sums, with the checks and doubts of a reasoning model.

use super::rng::Rng;
use super::vocabulary::{BOS, IM_END, IM_START, Vocabulary};

/// A question and its answer.
pub(super) struct TraceText {
    pub(super) prompt: String,
    pub(super) output: String,
}

const QUESTIONS: &[&str] = &[
    "What is twice the sum of {a} and {b}? Let {v} = {a} + {b} and give the answer.",
    "Find the sum of {a} and {b}, and then take it twice.",
    "If {v} = {a} + {b}, what is {v} + {v}?",
];

/// The first sentence of every paragraph.
const OPENING: &str = "Let {v} = {a} + {b}, so {v} = {s}.\n";

/// The other sentences of a paragraph, in random order.
const SENTENCES: &[&str] = &[
    "Wait, is {s} the sum of {a} and {b}?\n",
    "However, we need twice the sum, and that is {p}.\n",
    "The number {s} is not {p}, but {p} is {s} + {s}.\n",
    "Now check it again: {s} + {s} = {p}, and {p} - {s} = {s}.\n",
    "So the answer is {p}.\n",
    "Then maybe {v} is {a}, maybe {b}; we wait and see.\n",
    "It is not {a}, however, but {s}.\n",
    "Again, take {a} from {s}: the rest must be {b}.\n",
    "We know that {b} = {s} - {a}, so the check holds.\n",
];

const CLOSING: &str = "Hence the answer is {p}, and we are done.";

/// Generates a question and an answer of at least `tokens` tokens.
pub(super) fn write_trace(rng: &mut Rng, vocabulary: &Vocabulary, tokens: usize) -> TraceText {
    let mut sum = Sum::draw(rng);
    let prompt = sum.fill(QUESTIONS[rng.below(QUESTIONS.len())]);
    let mut output = String::new();
    loop {
        output += &sum.fill(OPENING);
        let mut sentences = SENTENCES.to_vec();
        rng.shuffle(&mut sentences);
        output.extend(sentences.into_iter().map(|sentence| sum.fill(sentence)));
        if vocabulary.encode(&output).len() >= tokens {
            output += &sum.fill(CLOSING);
            return TraceText { prompt, output };
        }
        sum = Sum::draw(rng);
    }
}

/// The ids of a trace as rendered by the chat template, and the number of ids before the answer.
pub(super) fn render(vocabulary: &Vocabulary, trace: &TraceText) -> (Vec<u32>, usize) {
    let mut ids = Vec::new();
    let special = |token: &str| vocabulary.id(token);
    ids.extend(special(BOS));
    ids.extend(special(IM_START));
    ids.extend(vocabulary.encode(&format!("user\n{}", trace.prompt)));
    ids.extend(special(IM_END));
    ids.extend(vocabulary.encode("\n"));
    ids.extend(special(IM_START));
    ids.extend(vocabulary.encode("assistant\n"));
    let prompt_len = ids.len();
    ids.extend(vocabulary.encode(&trace.output));
    (ids, prompt_len)
}

/// The numbers of one paragraph.
struct Sum {
    variable: &'static str,
    a: usize,
    b: usize,
}

impl Sum {
    fn draw(rng: &mut Rng) -> Sum {
        let variable = ["x", "y", "z"][rng.below(3)];
        Sum { variable, a: 2 + rng.below(38), b: 2 + rng.below(38) }
    }

    fn fill(&self, template: &str) -> String {
        let sum = self.a + self.b;
        let numbers = [("{a}", self.a), ("{b}", self.b), ("{s}", sum), ("{p}", 2 * sum)];
        let text = template.replace("{v}", self.variable);
        numbers.iter().fold(text, |text, (name, number)| text.replace(name, &number.to_string()))
    }
}
