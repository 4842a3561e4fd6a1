//! How moments look to people.

pub(crate) use meridian_projection::recorded_at as rfc3339;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use meridian_clock::Timestamp;

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
