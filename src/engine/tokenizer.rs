//! CLIP's tokenizer: text to token ids, from the files that diffusers directories come with.
//!
//! How long a prompt may be, and what happens to one that is longer, is not decided here.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::config::read_json;
use super::error::LoadError;
use super::prompt::Special;

/// CLIP's tokenizer and the tokens that have a meaning of their own.
#[derive(Debug)]
pub(crate) struct ClipTokenizer {
    /// Neither truncates nor pads.
    pub(crate) inner: Tokenizer,
    pub(crate) special: Special,
    /// Tokens of one prompt, start and end included.
    pub(crate) length: usize,
}

impl ClipTokenizer {
    /// The tokenizer in `directory`: `tokenizer.json`, or made from `vocab.json` and `merges.txt`.
    pub(crate) fn read(directory: &Path, length: usize) -> Result<Self, LoadError> {
        let path = directory.join("tokenizer.json");
        let refused = |error: tokenizers::Error| LoadError::Tokenizer { path: path.clone(), reason: error.to_string() };
        let mut inner = if path.is_file() {
            read(&path)?
        } else {
            Tokenizer::from_bytes(assemble(directory)?.to_string()).map_err(refused)?
        };
        inner.with_truncation(None).map_err(refused)?;
        inner.with_padding(None);
        let id = |token: &str| {
            let reason = || format!("it does not know its token `{token}`");
            inner.token_to_id(token).ok_or_else(|| LoadError::Tokenizer { path: path.clone(), reason: reason() })
        };
        let special = Special { start: Some(id(START)?), end: id(END)?, pad: id(&pad_token(directory)?)? };
        Ok(Self { inner, special, length })
    }
}

/// The tokenizer in a `tokenizer.json`.
pub(crate) fn read(path: &Path) -> Result<Tokenizer, LoadError> {
    // It panics over some damaged files, and would not say which.
    let read = std::panic::catch_unwind(|| Tokenizer::from_file(path).map_err(|error| error.to_string()));
    let read = read.unwrap_or_else(|_| Err("reading it failed badly".into()));
    read.map_err(|reason| LoadError::Tokenizer { path: path.into(), reason })
}

/// What short prompts are filled up with: the end token in Stable Diffusion 1, `!` in 2.
fn pad_token(directory: &Path) -> Result<String, LoadError> {
    #[derive(Default, Deserialize)]
    struct Special {
        pad_token: Option<Value>,
    }
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let path = directory.join(name);
        if path.is_file() {
            // Either the token itself, or an object around it.
            let token = read_json::<Special>(&path)?.pad_token;
            if let Some(text) = token.as_ref().and_then(|token| token.as_str().or_else(|| token["content"].as_str())) {
                return Ok(text.to_owned());
            }
        }
    }
    Ok(END.to_owned())
}

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// CLIP's tokenizer as transformers' `CLIPTokenizerFast` makes it from the two files that older models come with.
fn assemble(directory: &Path) -> Result<Value, LoadError> {
    let vocabulary_path = directory.join("vocab.json");
    let vocabulary: Value = read_json(&vocabulary_path)?;
    let id = |token: &str| {
        vocabulary.get(token).and_then(Value::as_u64).ok_or_else(|| LoadError::Tokenizer {
            path: vocabulary_path.clone(),
            reason: format!("it does not know `{token}`"),
        })
    };
    let (start, end) = (id(START)?, id(END)?);
    let merges_path = directory.join("merges.txt");
    let merges = std::fs::read_to_string(&merges_path).map_err(|source| LoadError::reading(&merges_path, source))?;
    let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    let special = |id: u64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": [special(start, START), special(end, END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Removed", "invert": true, "pattern": {"Regex":
                "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                           "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": merges},
    }))
}
