//! Options that are one of a few words: what people write, and what is shown to them.

/// A word that is none of those expected.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("\"{word}\" is none of {}", expected.join(", "))]
pub struct UnknownWord {
    /// What was written.
    pub(crate) word: String,
    /// What could have been.
    pub(crate) expected: &'static [&'static str],
}

/// Gives a type without data its words: `ALL`, `Display` and `FromStr`, in the order of the documentation.
macro_rules! words {
    ($type:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $type {
            /// All of them, in the order of the documentation.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::word::UnknownWord;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                let found = Self::ALL.into_iter().find(|one| one.word() == word);
                let expected = &[$($word),+];
                found.ok_or_else(|| $crate::word::UnknownWord { word: word.to_owned(), expected })
            }
        }
    };
}

pub(crate) use words;
