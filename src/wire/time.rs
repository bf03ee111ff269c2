//! Times as they stand in events and records: RFC 3339, UTC, milliseconds.

/// Formats milliseconds since the Unix epoch; a time outside the years that RFC 3339 can write becomes the epoch.
pub fn rfc3339(unix_ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(unix_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{time:.3}")
}

/// Reads what [`rfc3339`] wrote, in milliseconds since the Unix epoch.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_survive_the_round_trip() {
        for unix_ms in [0, 1, 999, 1_795_000_000_123] {
            let text = rfc3339(unix_ms);
            assert!(text.ends_with('Z') && text.len() == 24, "{text}");
            assert_eq!(parse_rfc3339(&text), Some(unix_ms));
        }
    }
}
