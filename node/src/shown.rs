//! How moments look to people.

use jiff::Timestamp as WallTime;
use meridian_clock::Timestamp;

/// The wall-clock part of `timestamp`, RFC 3339 in UTC.
pub(crate) fn rfc3339(timestamp: Timestamp) -> String {
    let since = timestamp.since_unix();
    // 32 bits of seconds end in 2106, so neither number can be out of range.
    let seconds = i64::try_from(since.as_secs()).unwrap_or(0);
    let nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    WallTime::new(seconds, nanos)
        .unwrap_or(WallTime::UNIX_EPOCH)
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moment_is_the_wall_clock_part_in_utc() {
        let at = Timestamp::from_unix(Duration::new(1_700_000_000, 500_000_000));
        assert_eq!(rfc3339(at), "2023-11-14T22:13:20.5Z");
        assert_eq!(
            rfc3339(Timestamp(u64::MAX)),
            "2106-02-07T06:28:15.999999999Z"
        );
    }
}
