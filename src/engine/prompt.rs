//! Text of prompts to chunks of token ids with weights, and weights to embeddings.
//!
//! The syntax of weights is that of the common web interfaces; it means something only where a request asks for it. How
//! chunks are encoded, and how several encoders share a prompt, is not decided here.

use candle_core::{DType, Result, Tensor};
use tokenizers::Tokenizer;

use crate::job::{LongPrompt, PromptOptions, Weighting};

/// What a pair of round brackets without a number multiplies by; square brackets divide by it.
const EMPHASIS: f64 = 1.1;
/// Greater weights are cut to this: no picture is left anyway, and many brackets would overflow.
const WEIGHT_MAX: f64 = 100.0;
/// A long prompt is cut behind a comma if there is one among so many tokens before the place.
const COMMA_TOKENS: usize = 20;
/// A comma at the end of a word, in CLIP's vocabularies.
const COMMA: &str = ",</w>";

/// What a prompt with weights consists of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    /// Text, without brackets that mean something. Neighbours differ in weight; none is empty.
    Text {
        /// As written, escapes resolved.
        text: String,
        /// 1 where nothing was said.
        weight: f32,
    },
    /// `BREAK`: what follows goes into a new chunk.
    Break,
}

/// Reads weights: `(text)` is 1.1 times as much, `[text]` 1.1 times less, `(text:1.3)` 1.3 times as much, and brackets
/// in brackets multiply. `\(` and the like are brackets of the text itself, and so is one without its counterpart.
/// `BREAK`, in capitals, is no text but ends a chunk, with the blanks around it.
pub(crate) fn parse(text: &str) -> Vec<Piece> {
    let mut parser = Parser::default();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let length = match character {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|next| "\\()[]".contains(*next));
                parser.text(escaped.unwrap_or(character).encode_utf8(&mut [0; 4]));
                1 + usize::from(escaped.is_some())
            }
            '(' => parser.open(Bracket::Round, "("),
            '[' => parser.open(Bracket::Square, "["),
            ')' => parser.close(Bracket::Round, EMPHASIS, ")"),
            ']' => parser.close(Bracket::Square, 1.0 / EMPHASIS, "]"),
            ':' => match weight_and_bracket(rest) {
                Some((weight, written)) => parser.close(Bracket::Round, weight, written),
                None => parser.text(":"),
            },
            _ => parser.run(&rest[..rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len())]),
        };
        rest = &rest[length..];
    }
    parser.finish()
}

/// The number in `: 1.3 )`, with which `text` begins, and how it is written.
fn weight_and_bracket(text: &str) -> Option<(f64, &str)> {
    let in_number = |character: char| character.is_ascii_digit() || "+-. \t".contains(character);
    let end = 1 + text.get(1..)?.find(|character| !in_number(character))?;
    let written = text.get(..=end)?.strip_suffix(')').map(|_| &text[..=end])?;
    Some((text[1..end].trim().parse().ok()?, written))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bracket {
    Round,
    Square,
}

#[derive(Clone, Debug)]
enum Item {
    Text { text: String, weight: f64 },
    Break,
}

/// What has been read. Each method answers how many bytes of the prompt it has used up.
#[derive(Debug, Default)]
struct Parser {
    items: Vec<Item>,
    /// Open brackets, as places of items that hold the bracket itself until its counterpart is found.
    open: Vec<(Bracket, usize)>,
}

impl Parser {
    fn text(&mut self, text: &str) -> usize {
        self.items.push(Item::Text { text: text.into(), weight: 1.0 });
        text.len()
    }

    fn open(&mut self, bracket: Bracket, written: &str) -> usize {
        self.open.push((bracket, self.items.len()));
        self.text(written)
    }

    fn close(&mut self, bracket: Bracket, factor: f64, written: &str) -> usize {
        let Some(found) = self.open.iter().rposition(|(open, _)| *open == bracket) else { return self.text(written) };
        let (_, place) = self.open.remove(found);
        if let Some(Item::Text { text, .. }) = self.items.get_mut(place) {
            text.clear();
        }
        for item in &mut self.items[place..] {
            if let Item::Text { weight, .. } = item {
                *weight = (*weight * factor).clamp(-WEIGHT_MAX, WEIGHT_MAX);
            }
        }
        written.len()
    }

    /// Text without brackets.
    fn run(&mut self, text: &str) -> usize {
        let in_word = |character: char| character.is_alphanumeric() || character == '_';
        let mut rest = text;
        let mut from = 0;
        while let Some(found) = rest[from..].find("BREAK") {
            let (before, after) = (&rest[..from + found], &rest[from + found + "BREAK".len()..]);
            if before.ends_with(in_word) || after.starts_with(in_word) {
                from += found + "BREAK".len();
            } else {
                self.text(before.trim_end());
                self.items.push(Item::Break);
                (rest, from) = (after.trim_start(), 0);
            }
        }
        self.text(rest);
        text.len()
    }

    /// Neighbours of equal weight become one, so that text without weights is tokenized as a whole.
    fn finish(self) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for item in self.items {
            match item {
                Item::Break => pieces.push(Piece::Break),
                Item::Text { text, .. } if text.is_empty() => {}
                Item::Text { text, weight } => match pieces.last_mut() {
                    Some(Piece::Text { text: before, weight: same }) if *same == weight as f32 => {
                        before.push_str(&text)
                    }
                    _ => pieces.push(Piece::Text { text, weight: weight as f32 }),
                },
            }
        }
        pieces
    }
}

/// A token of a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Token {
    id: u32,
    weight: f32,
}

/// The tokens of a text encoder that have a meaning of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Special {
    /// Begins every chunk, where the encoder wants that.
    pub(crate) start: Option<u32>,
    /// Ends every chunk.
    pub(crate) end: u32,
    /// Fills short chunks up.
    pub(crate) pad: u32,
}

impl Special {
    /// `content` between start and end, filled up to `length` tokens.
    fn chunk(self, content: &[Token], length: usize) -> (Vec<u32>, Vec<f32>) {
        let own = |id| (id, 1.0);
        let content = content.iter().map(|token| (token.id, token.weight));
        let tokens = self.start.map(own).into_iter().chain(content).chain([own(self.end)]);
        let (mut ids, mut weights): (Vec<u32>, Vec<f32>) = tokens.unzip();
        ids.resize(length, self.pad);
        weights.resize(length, 1.0);
        (ids, weights)
    }
}

/// A prompt as an encoder reads it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tokenized {
    /// Chunks of the encoder's length, at least one.
    pub(crate) ids: Vec<Vec<u32>>,
    /// A weight for each of `ids`; 1 for those that are not the prompt's.
    pub(crate) weights: Vec<Vec<f32>>,
    /// The part of the prompt that did not fit.
    pub(crate) truncated: Option<String>,
}

impl Tokenized {
    /// With empty chunks up to `chunks` of them: prompt and negative prompt must be equally long.
    pub(crate) fn padded(mut self, chunks: usize, special: Special, length: usize) -> Self {
        while self.ids.len() < chunks {
            let (ids, weights) = special.chunk(&[], length);
            self.ids.push(ids);
            self.weights.push(weights);
        }
        self
    }
}

/// The tokens of `text` in chunks of `length`, special tokens included.
///
/// `tokenizer` must neither truncate nor pad. A prompt that is longer than one chunk is cut off or goes on in the next,
/// as `options` say; then the cut is made behind the last comma of the chunk's last 20 tokens, if there is one and the
/// chunk does not end before a comma anyway.
///
/// # Errors
/// Whatever the tokenizer says.
pub(crate) fn tokenize(
    tokenizer: &Tokenizer,
    text: &str,
    options: PromptOptions,
    special: Special,
    length: usize,
) -> Result<Tokenized> {
    let room = length.saturating_sub(1 + usize::from(special.start.is_some())).max(1);
    let comma = tokenizer.token_to_id(COMMA);
    let pieces = match options.weighting {
        Weighting::Off => vec![Piece::Text { text: text.into(), weight: 1.0 }],
        Weighting::On => parse(text),
    };
    let mut tokenized = Tokenized { ids: Vec::new(), weights: Vec::new(), truncated: None };
    for section in pieces.split(|piece| *piece == Piece::Break) {
        let (tokens, cut) = section_tokens(tokenizer, section, options.long, room)?;
        if let Some(cut) = cut {
            let before = tokenized.truncated.take().map(|before| before + " ");
            tokenized.truncated = Some(before.unwrap_or_default() + &cut);
        }
        for chunk in chunks(&tokens, room, comma) {
            let (ids, weights) = special.chunk(chunk, length);
            tokenized.ids.push(ids);
            tokenized.weights.push(weights);
        }
    }
    Ok(tokenized.padded(1, special, length))
}

/// Tokens and weights of what stands between two `BREAK`s, and the text that was cut off.
fn section_tokens(
    tokenizer: &Tokenizer,
    section: &[Piece],
    long: LongPrompt,
    room: usize,
) -> Result<(Vec<Token>, Option<String>)> {
    let mut tokens = Vec::new();
    let mut cut: Option<String> = None;
    for piece in section {
        let Piece::Text { text, weight } = piece else { continue };
        if let Some(cut) = &mut cut {
            cut.push_str(text);
            continue;
        }
        let encoding = tokenizer.encode(text.as_str(), false).map_err(candle_core::Error::wrap)?;
        tokens.extend(encoding.get_ids().iter().map(|id| Token { id: *id, weight: *weight }));
        if long == LongPrompt::Truncate && tokens.len() > room {
            let beyond = tokens.len() - room;
            let (from, _) = encoding.get_offsets()[encoding.len() - beyond];
            cut = Some(text.get(from..).unwrap_or(text).to_owned());
            tokens.truncate(room);
        }
    }
    Ok((tokens, cut.map(|cut| cut.trim().to_owned())))
}

/// `tokens` in chunks of at most `room`.
fn chunks(tokens: &[Token], room: usize, comma: Option<u32>) -> Vec<&[Token]> {
    let is_comma = |token: &Token| Some(token.id) == comma;
    let mut chunks = Vec::new();
    let mut rest = tokens;
    while rest.len() > room {
        let first = room.saturating_sub(COMMA_TOKENS);
        let behind_comma = rest[first..room].iter().rposition(is_comma).map(|found| first + found + 1);
        let at = behind_comma.filter(|_| !is_comma(&rest[room])).unwrap_or(room);
        chunks.push(&rest[..at]);
        rest = &rest[at..];
    }
    if !rest.is_empty() {
        chunks.push(rest);
    }
    chunks
}

/// The embedding `(1, d, t)` of a chunk with each token's vector multiplied by its weight, and then all by what keeps
/// the mean as it was.
pub(crate) fn weigh(embedding: &Tensor, weights: &[f32]) -> Result<Tensor> {
    if weights.iter().all(|weight| *weight == 1.0) {
        return Ok(embedding.clone());
    }
    let mean = |x: &Tensor| x.mean_all()?.to_scalar::<f32>();
    let plain = embedding.to_dtype(DType::F32)?;
    let factors = Tensor::from_slice(weights, (1, 1, weights.len()), embedding.device())?;
    let weighted = plain.broadcast_mul(&factors)?;
    let ratio = f64::from(mean(&plain)?) / f64::from(mean(&weighted)?);
    let weighted = if ratio.is_finite() { (weighted * ratio)? } else { weighted };
    weighted.to_dtype(embedding.dtype())
}

#[cfg(test)]
mod tests {
    use super::super::tiny;
    use super::super::tokenizer::ClipTokenizer;
    use super::*;

    fn shown(pieces: &[Piece]) -> Vec<(&str, f32)> {
        let show = |piece| match piece {
            &Piece::Text { ref text, weight } => (text.as_str(), weight),
            Piece::Break => ("BREAK", f32::INFINITY),
        };
        pieces.iter().map(show).collect()
    }

    #[test]
    fn brackets_weigh_what_they_enclose() {
        let (up, down) = (1.1_f32, 1.0 / 1.1_f32);
        let broken = ("BREAK", f32::INFINITY);
        let cases: &[(&str, &[(&str, f32)])] = &[
            ("", &[]),
            ("a red star", &[("a red star", 1.0)]),
            ("a (red) star", &[("a ", 1.0), ("red", up), (" star", 1.0)]),
            ("((red))", &[("red", 1.21)]),
            ("[red]", &[("red", down)]),
            ("[[red]] (red)", &[("red", 1.0 / 1.21), (" ", 1.0), ("red", up)]),
            ("(red:1.3) star", &[("red", 1.3), (" star", 1.0)]),
            ("(red: .5 )", &[("red", 0.5)]),
            ("(red:-1)", &[("red", -1.0)]),
            ("(a (red:2) star:1.5)", &[("a ", 1.5), ("red", 3.0), (" star", 1.5)]),
            ("(a [red] star)", &[("a ", up), ("red", 1.0), (" star", up)]),
            ("a \\(red\\) \\[star\\] \\\\", &[("a (red) [star] \\", 1.0)]),
            ("back\\slash\\", &[("back\\slash\\", 1.0)]),
            // Without counterpart.
            ("(red", &[("(red", 1.0)]),
            ("red) star", &[("red) star", 1.0)]),
            ("[red (star)", &[("[red ", 1.0), ("star", up)]),
            ("(a [red) star", &[("a [red", up), (" star", 1.0)]),
            ("a ratio of 16:9", &[("a ratio of 16:9", 1.0)]),
            ("red:1.3) star", &[("red:1.3) star", 1.0)]),
            ("(red:1.3 star)", &[("red:1.3 star", up)]),
            ("(red:1.2.3)", &[("red:1.2.3", up)]),
            ("(red:inf)", &[("red:inf", up)]),
            ("(red:)", &[("red:", up)]),
            ("()", &[]),
            ("(red:1e9)", &[("red:1e9", up)]),
            ("(red:99999)", &[("red", 100.0)]),
            ("a star BREAK red", &[("a star", 1.0), broken, ("red", 1.0)]),
            ("(a BREAK\nb)", &[("a", up), broken, ("b", up)]),
            ("BREAKS a_BREAK break", &[("BREAKS a_BREAK break", 1.0)]),
            ("BREAKS BREAK é", &[("BREAKS", 1.0), broken, ("é", 1.0)]),
        ];
        for (text, expected) in cases {
            let pieces = parse(text);
            let found = shown(&pieces);
            let equal = found.len() == expected.len()
                && found
                    .iter()
                    .zip(*expected)
                    .all(|(one, other)| one.0 == other.0 && (one.1 == other.1 || (one.1 - other.1).abs() < 1e-6));
            assert!(equal, "{text:?}: {found:?}, not {expected:?}");
        }
    }

    /// Texts of the characters that mean something, and of some that do not: splitmix64.
    fn random_texts(count: u64) -> impl Iterator<Item = String> {
        const WORDS: [&str; 18] =
            ["(", ")", "[", "]", ":", "\\", "1", ".", "-", "9", "BREAK", " ", "\n", "a", ",", "é", "𝔸", ":1.5)"];
        let mut state = 0_u64;
        let mut next = move || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)) as usize
        };
        (0..count).map(move |_| {
            let length = next() % 40;
            (0..length).map(|_| WORDS[next() % WORDS.len()]).collect()
        })
    }

    #[test]
    fn every_text_has_a_meaning() {
        for text in random_texts(20_000) {
            let pieces = parse(&text);
            for piece in &pieces {
                let Piece::Text { text: part, weight } = piece else { continue };
                assert!(!part.is_empty() && weight.abs() <= WEIGHT_MAX as f32, "{text:?}: {piece:?}");
            }
            for pair in pieces.windows(2) {
                if let [Piece::Text { weight: one, .. }, Piece::Text { weight: other, .. }] = pair {
                    assert_ne!(one, other, "{text:?}: {pair:?}");
                }
            }
            let without_break = text.replace("BREAK", "");
            let escaped: String = without_break
                .chars()
                .flat_map(|one| "\\()[]".contains(one).then_some('\\').into_iter().chain([one]))
                .collect();
            let whole = Piece::Text { text: without_break.clone(), weight: 1.0 };
            assert_eq!(parse(&escaped), Vec::from_iter((!without_break.is_empty()).then_some(whole)), "{escaped:?}");
        }
        assert_eq!(
            parse(&format!("{}a{}", "(".repeat(9000), ")".repeat(9000))),
            [Piece::Text { text: "a".into(), weight: WEIGHT_MAX as f32 }]
        );
    }

    const LENGTH: usize = 77;
    const WEIGHTED: PromptOptions = PromptOptions { long: LongPrompt::Truncate, weighting: Weighting::On };
    const CHUNKED: PromptOptions = PromptOptions { long: LongPrompt::Chunk, weighting: Weighting::Off };

    fn tokenizer() -> (Tokenizer, Special) {
        let model = tiny::model("sd1");
        let read = ClipTokenizer::read(&model.path().join("tokenizer"), LENGTH).unwrap();
        (read.inner, read.special)
    }

    fn tokens(text: &str, options: PromptOptions) -> Tokenized {
        let (tokenizer, special) = tokenizer();
        let tokenized = tokenize(&tokenizer, text, options, special, LENGTH).unwrap();
        assert!(tokenized.ids.iter().all(|chunk| chunk.len() == LENGTH && chunk[0] == special.start.unwrap()));
        assert!(tokenized.weights.iter().all(|chunk| chunk.len() == LENGTH));
        assert_eq!(tokenized.ids.len(), tokenized.weights.len());
        tokenized
    }

    /// What stands between start and end of each chunk.
    fn contents(tokenized: &Tokenized) -> Vec<&[u32]> {
        let (_, special) = tokenizer();
        let until_end = |chunk: &[u32]| chunk.iter().position(|id| *id == special.end).unwrap();
        tokenized.ids.iter().map(|chunk| &chunk[1..until_end(chunk)]).collect()
    }

    #[test]
    fn prompts_without_options_are_tokenized_as_by_transformers() {
        for (prompt, expected) in tiny::golden("sd1")["tokens"]["tokenizer"].as_object().unwrap() {
            let expected: Vec<u32> =
                expected.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let found = tokens(prompt, PromptOptions::default());
            assert_eq!(found.ids, [expected], "{prompt:?}");
            assert_eq!(found.truncated.is_some(), prompt.len() > 100, "{prompt:?}");
        }
    }

    #[test]
    fn what_is_cut_off_is_reported() {
        let words = |count: usize| vec!["and"; count].join(" ");
        assert_eq!(tokens(&words(75), PromptOptions::default()).truncated, None);
        let found = tokens(&format!("{} é  Red STAR ", words(73)), PromptOptions::default());
        assert_eq!(found.truncated.as_deref(), Some("Red STAR"));
        let found = tokens(&format!("{} (red star:0.5) and BREAK {} [red]", words(74), words(75)), WEIGHTED);
        assert_eq!(found.truncated.as_deref(), Some("star and red"));
        assert_eq!(found.ids.len(), 2);
        assert_eq!(tokens(&words(100), CHUNKED).truncated, None);
    }

    #[test]
    fn long_prompts_go_on_in_the_next_chunk() {
        let lengths = |text: &str| contents(&tokens(text, CHUNKED)).iter().map(|chunk| chunk.len()).collect::<Vec<_>>();
        let words = |count: usize| "and ".repeat(count);
        let cases: [(String, &[usize]); 8] = [
            (String::new(), &[0]),
            (words(75), &[75]),
            (words(76), &[75, 1]),
            (words(160), &[75, 75, 10]),
            // Behind the last comma, if it is among the last 20.
            (format!("{}, {}, {}", words(60), words(5), words(30)), &[67, 30]),
            (format!("{}, {}", words(55), words(30)), &[56, 30]),
            (format!("{}, {}", words(54), words(30)), &[75, 10]),
            // A comma comes next: nothing is torn apart.
            (format!("{}, {}, {}", words(60), words(14), words(5)), &[75, 6]),
        ];
        for (text, expected) in cases {
            assert_eq!(lengths(&text), expected, "{text}");
        }
        let text = format!("{}, {}", words(60), words(80));
        let (tokenizer, _) = tokenizer();
        assert_eq!(contents(&tokens(&text, CHUNKED)).concat(), tokenizer.encode(text, false).unwrap().get_ids());
    }

    #[test]
    fn every_token_has_the_weight_of_its_text() {
        let found = tokens("a (red star:1.5) BREAK [and]", WEIGHTED);
        assert_eq!(
            contents(&found),
            contents(&Tokenized {
                ids: [tokens("a red star", WEIGHTED).ids, tokens("and", WEIGHTED).ids].concat(),
                ..found.clone()
            })
        );
        assert_eq!(found.weights[0][..6], [1.0, 1.0, 1.5, 1.5, 1.0, 1.0]);
        assert_eq!(found.weights[1][..3], [1.0, (1.0 / 1.1_f64) as f32, 1.0]);
        for text in ["a (red) star", "BREAK BREAK a (red) star BREAK"] {
            assert_eq!(tokens(text, WEIGHTED).ids, tokens("a red star", WEIGHTED).ids, "{text}");
        }
        assert_eq!(tokens("a star BREAK", PromptOptions::default()).ids.len(), 1);
        assert_eq!(tokens("BREAK", WEIGHTED).ids, tokens("", WEIGHTED).ids);
    }

    #[test]
    fn short_prompts_are_padded_with_empty_chunks() {
        let (_, special) = tokenizer();
        let (empty, short) = (tokens("", CHUNKED), tokens("a star", CHUNKED));
        let padded = short.clone().padded(3, special, LENGTH);
        assert_eq!(padded.ids, [&short.ids[0], &empty.ids[0], &empty.ids[0]].map(Clone::clone));
        assert_eq!(padded.weights.len(), 3);
        assert_eq!(padded.clone().padded(2, special, LENGTH), padded);
    }

    #[test]
    fn encoders_without_a_start_token_have_one_token_more() {
        let (tokenizer, special) = tokenizer();
        let special = Special { start: None, ..special };
        let found = tokenize(&tokenizer, &"and ".repeat(10), PromptOptions::default(), special, 8).unwrap();
        assert_eq!((found.ids[0].len(), found.ids[0][7]), (8, special.end));
        assert_eq!(found.truncated.as_deref(), Some("and and and"));
    }

    #[test]
    fn weighing_keeps_the_mean() {
        let embedding = (tiny::tensor("embedding", &[1, 16, 4]) + 0.1).unwrap();
        let mean = |x: &Tensor| x.mean_all().unwrap().to_scalar::<f32>().unwrap();
        let weighted = weigh(&embedding, &[1.0, 1.5, 0.5, 1.0]).unwrap();
        assert!((mean(&weighted) - mean(&embedding)).abs() < 1e-6);
        let column = |x: &Tensor, token: usize| -> Vec<f32> {
            x.narrow(2, token, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        // All columns are scaled by one factor besides their weights.
        let factor = column(&weighted, 0)[0] / column(&embedding, 0)[0];
        for (token, weight) in [1.0, 1.5, 0.5, 1.0].into_iter().enumerate() {
            for (ours, plain) in column(&weighted, token).iter().zip(column(&embedding, token)) {
                assert!((ours - plain * weight * factor).abs() < 1e-5);
            }
        }
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(flat(&weigh(&embedding, &[1.0; 4]).unwrap()), flat(&embedding));
        // Nothing is left whose mean could be kept.
        assert_eq!(flat(&weigh(&embedding, &[0.0; 4]).unwrap()), [0.0; 64]);
    }
}
