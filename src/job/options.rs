//! The choices of a request that are more than a number: random numbers, starting pictures, LoRAs, treatment of prompts.
//!
//! Nothing is fetched or opened here: these are names and rules.

use std::str::FromStr;

use super::id::{LoraName, by_name};

/// Whose random numbers a seed gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rng {
    /// `torch.Generator("cpu")`.
    #[default]
    TorchCpu,
    /// `torch.Generator("cuda")`.
    TorchCuda,
}

impl Rng {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::TorchCpu, Self::TorchCuda];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TorchCpu => "torch-cpu",
            Self::TorchCuda => "torch-cuda",
        }
    }
}

/// What happens to a prompt that is longer than the text encoder reads at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LongPrompt {
    /// The rest is cut off, with a warning.
    #[default]
    Truncate,
    /// It is encoded in chunks, whose embeddings are put one after the other.
    Chunk,
}

impl LongPrompt {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Truncate, Self::Chunk];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncate => "truncate",
            Self::Chunk => "chunk",
        }
    }
}

/// What becomes of a job that cannot make its deadline any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnLate {
    /// It fails then, and nothing more is spent on it.
    #[default]
    Fail,
    /// It goes on, as if it had no deadline.
    Continue,
}

impl OnLate {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Fail, Self::Continue];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Continue => "continue",
        }
    }
}

/// When a job is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deadline {
    /// Milliseconds since the Unix epoch.
    pub unix_ms: i64,
    /// What becomes of it otherwise.
    pub on_late: OnLate,
}

/// Steps that do without most of the model: what its deep layers said is kept from the last whole step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeatureCache {
    /// Every n-th step is a whole one, 2 to 10; the first always is.
    pub interval: u32,
}

/// How the text of a prompt is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PromptOptions {
    /// See there.
    pub long: LongPrompt,
    /// Whether `(word:1.3)`, `[word]` and `BREAK` have a meaning.
    pub weighting: Weighting,
}

/// Whether brackets in prompts have a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Weighting {
    /// A prompt is text.
    #[default]
    Off,
    /// `(word:1.3)`, `(word)`, `[word]` weigh words, `BREAK` begins a new chunk.
    On,
}

/// Where a starting picture or a mask comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PictureSource {
    /// An object of the store, below the tenant's own prefix.
    Key(String),
    /// A `data:` URL.
    Data(String),
    /// An `https:` URL.
    Url(String),
}

/// Text that names no picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an object key, a data: URL or an https: URL")]
pub struct InvalidPictureSource;

/// An object key longer than this is a mistake.
const KEY_BYTES_MAX: usize = 1024;

impl PictureSource {
    /// As the request names it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Key(text) | Self::Data(text) | Self::Url(text) => text,
        }
    }
}

impl FromStr for PictureSource {
    type Err = InvalidPictureSource;

    fn from_str(text: &str) -> Result<Self, InvalidPictureSource> {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("data") => Ok(Self::Data(text.to_owned())),
            // Whether plain http is allowed, and where to, is the address guard's business.
            Some("https" | "http") => Ok(Self::Url(text.to_owned())),
            Some(_) => Err(InvalidPictureSource),
            None => {
                let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
                let key = text.len() <= KEY_BYTES_MAX
                    && text.split('/').all(plain)
                    && !text.contains(|character: char| character.is_control() || character == '\\');
                if key { Ok(Self::Key(text.to_owned())) } else { Err(InvalidPictureSource) }
            }
        }
    }
}

/// What an image starts from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Start {
    /// Noise alone.
    #[default]
    Noise,
    /// A picture under noise: img2img.
    Picture {
        /// Above 0 to 1: how much of it is made anew.
        strength: f32,
    },
    /// A picture of which the white of a mask is made anew: inpainting.
    Inpaint {
        /// Above 0 to 1: how much of it is made anew.
        strength: f32,
    },
}

/// A LoRA and how much of it.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraChoice {
    /// Its name.
    pub name: LoraName,
    /// What its changes are multiplied with.
    pub weight: f32,
}

/// What SDXL is told of sizes, each height or top first, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Height and width of the picture that this would have been made from.
    pub original: [u32; 2],
    /// Where it would have been cropped: from the top, from the left.
    pub crops_coords_top_left: [u32; 2],
    /// Height and width that it would have been cropped to.
    pub target: [u32; 2],
}

by_name!(Rng);
by_name!(LongPrompt);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_keys_or_urls_and_nothing_else() {
        for (text, kind) in [
            ("inputs/acme/cat.png", "key"),
            ("https://example.com/a.png", "url"),
            ("HTTP://127.0.0.1/a.png", "url"),
            ("data:image/png;base64,AAAA", "data"),
        ] {
            let found = match text.parse().unwrap() {
                PictureSource::Key(_) => "key",
                PictureSource::Data(_) => "data",
                PictureSource::Url(_) => "url",
            };
            assert_eq!(found, kind, "{text}");
        }
        let long = "a".repeat(1025);
        for text in ["", "/etc/passwd", "a/../b", "a//b", ".", "file:///etc/passwd", "a\nb", "a\\b", long.as_str()] {
            assert_eq!(text.parse::<PictureSource>(), Err(InvalidPictureSource), "{text:?}");
        }
    }
}
