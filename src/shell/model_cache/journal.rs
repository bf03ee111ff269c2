//! What was fetched of a model that is not whole yet: one record for each piece that was written, with its checksum.
//!
//! Nothing is flushed to the disk: records survive the death of the process, and after that of the machine their checksums
//! tell what else did.

use std::fs::File;
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::Path;

/// Bytes of a record.
const RECORD: usize = 28;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A piece of a file was written.
    Written { file: u32, range: Range<u64>, checksum: u32 },
    /// What was written of a file before is of no use.
    Forgotten { file: u32 },
}

impl Record {
    fn encode(&self) -> [u8; RECORD] {
        let (kind, file, range, checksum) = match self {
            Self::Written { file, range, checksum } => (1_u32, *file, range.clone(), *checksum),
            Self::Forgotten { file } => (2, *file, 0..0, 0),
        };
        let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
        let mut bytes = [0; RECORD];
        bytes[0..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&file.to_le_bytes());
        bytes[8..16].copy_from_slice(&range.start.to_le_bytes());
        bytes[16..20].copy_from_slice(&length.to_le_bytes());
        bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
        let own = crc32fast::hash(&bytes[..24]);
        bytes[24..28].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if word(24)? != crc32fast::hash(bytes.get(..24)?) {
            return None;
        }
        let start = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
        match word(0)? {
            1 => {
                let range = start..start.checked_add(word(16)?.into())?;
                Some(Self::Written { file: word(4)?, range, checksum: word(20)? })
            }
            2 => Some(Self::Forgotten { file: word(4)? }),
            _ => None,
        }
    }
}

/// A journal that is appended to.
#[derive(Debug)]
pub(super) struct Journal(File);

impl Journal {
    /// Opens it, and reads what is in it up to the first record that is torn.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Record>)> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let records: Vec<Record> = bytes.chunks(RECORD).map_while(Record::decode).collect();
        let file = File::options().create(true).append(true).open(path)?;
        file.set_len((records.len() * RECORD) as u64)?;
        Ok((Self(file), records))
    }

    /// Adds a record. What it speaks of must have been written.
    pub(super) fn append(&self, record: &Record) -> io::Result<()> {
        (&self.0).write_all(&record.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_record_ends_the_journal_and_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let written = |start| Record::Written { file: 3, range: start..start + 1024, checksum: 77 };
        let records = [written(1 << 40), Record::Forgotten { file: 3 }, written(0)];
        {
            let (journal, before) = Journal::open(&path).unwrap();
            assert!(before.is_empty());
            records.iter().for_each(|record| journal.append(record).unwrap());
        }
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let (journal, read) = Journal::open(&path).unwrap();
            assert_eq!(read, records[..length / RECORD]);
            journal.append(&records[0]).unwrap();
            let (_, read) = Journal::open(&path).unwrap();
            assert_eq!(read.len(), length / RECORD + 1);
        }
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x10;
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(Journal::open(&path).unwrap().1, records[..place / RECORD], "{place}");
        }
    }
}
