//! Azure's CSV of 2023 and 2024: `TIMESTAMP,ContextTokens,GeneratedTokens`, with a date and a time of day.

use super::{Class, Trace, TraceRequest};

/// Whether `line` is the header of one of these.
pub(super) fn is_it(line: &str) -> bool {
    let mut names = line.split(',').map(str::trim);
    names.next() == Some("TIMESTAMP") && names.next() == Some("ContextTokens")
}

/// The trace in `text`.
///
/// # Errors
/// The number of a line, from 1, and what is wrong with it.
pub(super) fn parse(text: &str, origin: &str) -> Result<Trace, (usize, String)> {
    let mut requests = Vec::new();
    for (index, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
        let at = index + 1;
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [time, input, output] = fields[..] else {
            return Err((
                at,
                format!("{} fields where TIMESTAMP,ContextTokens,GeneratedTokens are 3", fields.len()),
            ));
        };
        let seconds = seconds(time)
            .ok_or_else(|| (at, format!("'{time}' is no time such as 2023-11-16 18:17:03.9799600")))?;
        let count = |what: &str, text: &str| {
            text.parse().map_err(|_| (at, format!("'{text}' is no number of {what} tokens")))
        };
        requests.push((seconds, count("context", input)?, count("generated", output)?));
    }
    // Whole seconds and their parts are kept apart until here: an f64 of seconds since 1970 has no room for 100 ns.
    let first = requests.iter().map(|row| row.0).min().unwrap_or_default();
    let since =
        |(whole, part): (i64, u32)| (whole - first.0) as f64 + (f64::from(part) - f64::from(first.1)) / 1e9;
    let requests =
        requests.into_iter().map(|(time, input, output)| TraceRequest::plain(since(time), input, output));
    Ok(Trace::new(requests.collect(), vec![Class::default()], 1, origin.to_owned()))
}

/// Seconds since 1970 and nanoseconds of `2023-11-16 18:17:03.9799600`; a time zone behind it is taken to be the same in
/// all rows.
fn seconds(text: &str) -> Option<(i64, u32)> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let time = time.split(['+', 'Z']).next()?;
    let (clock, part) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    let fits = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..61).contains(&second);
    if !fits || part.len() > 9 || !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds = format!("{part:0<9}").parse().ok()?;
    Some((((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second, nanoseconds))
}

/// Days since 1970 in the Gregorian calendar (H. Hinnant, "chrono-compatible low-level date algorithms").
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_apart_to_a_tenth_of_a_microsecond_and_over_midnight() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2024-02-29 23:59:59.9999999,10,1\n\
                    2024-03-01 00:00:00.0000000+00:00,20,2\n2024-02-29 23:59:59,30,3";
        let trace = parse(text, "x").unwrap();
        let rows: Vec<_> =
            trace.requests.iter().map(|r| (r.arrival_s, r.input_tokens, r.output_tokens)).collect();
        assert_eq!((rows[0], rows[2]), ((0.0, 30, 3), (1.0, 20, 2)));
        assert!((rows[1].0 - 0.999_999_9).abs() < 1e-12 && rows[1].1 == 10, "{rows:?}");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        // date -u -d 1970-01-01 +%s and so on, over 86400
        for (date, expected) in [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2023, 11, 16), 19_677)] {
            assert_eq!(days(date.0, date.1, date.2), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (line, reason) in [
            ("2023-11-16 18:17:03.9", "1 fields"),
            ("yesterday,1,2", "'yesterday' is no time"),
            ("2023-13-16 18:17:03,1,2", "is no time"),
            ("2023-11-16 18:17:03,many,2", "'many' is no number of context tokens"),
            ("2023-11-16 18:17:03,1,-2", "'-2' is no number of generated tokens"),
        ] {
            let text = format!("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,2\n{line}\n");
            let (at, said) = parse(&text, "x").unwrap_err();
            assert!(at == 3 && said.contains(reason), "{at}: {said}");
        }
    }
}
