//! Time, in columns: one for each two looks, or for more where a recording is long.

/// Most columns that a chart has.
pub const MOST: usize = 400;

/// The time between two looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// Seconds since the first look.
    pub start: f64,
    /// The same, of its end.
    pub end: f64,
    /// Whether in part of it nothing was to be seen: what came then is spread over all of it.
    pub gap: bool,
}

impl Column {
    pub fn seconds(&self) -> f64 {
        self.end - self.start
    }

    fn with(&self, next: &Self) -> Self {
        Self { start: self.start, end: next.end, gap: self.gap || next.gap }
    }
}

/// Joins each two. A last one that is alone stays.
pub fn halve(columns: &mut Vec<Column>) {
    *columns =
        columns.chunks(2).map(|two| two.get(1).map_or(two[0], |next| two[0].with(next))).collect();
}

/// How many came in each column; in those behind its end, none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line(Vec<u64>);

impl Line {
    pub fn add(&mut self, column: usize, n: u64) {
        if n == 0 {
            return;
        }
        if self.0.len() <= column {
            self.0.resize(column + 1, 0);
        }
        self.0[column] = self.0[column].saturating_add(n);
    }

    pub fn at(&self, column: usize) -> u64 {
        self.0.get(column).copied().unwrap_or(0)
    }

    pub fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// As many numbers as there are columns.
    pub fn numbers(&self, columns: usize) -> Vec<u64> {
        (0..columns).map(|column| self.at(column)).collect()
    }

    /// Adds another.
    pub fn join(&mut self, other: &Self) {
        other.0.iter().enumerate().for_each(|(column, n)| self.add(column, *n));
    }

    /// What of it is not in another, of which it is the sum.
    pub fn without(&self, other: &Self) -> Self {
        let left = self.0.iter().enumerate();
        Self(left.map(|(column, n)| n.saturating_sub(other.at(column))).collect())
    }

    /// As [`halve`].
    pub fn halve(&mut self) {
        self.0 = self
            .0
            .chunks(2)
            .map(|two| two.iter().fold(0, |a, b| u64::saturating_add(a, *b)))
            .collect();
    }

    /// Of what is sampled at times, at most so many seconds apart: what is found came since it was found the last time. Of what is found
    /// first, that is if it goes back to before the first column, the part that came before is left out.
    pub fn spread(&self, columns: &[Column], most: f64) -> Self {
        let mut spread = Self(vec![0; columns.len()]);
        let found: Vec<_> = (0..columns.len()).filter(|n| self.at(*n) > 0).collect();
        let mut first = 0;
        for (n, &last) in found.iter().enumerate() {
            let end = columns[last].end;
            while first < last && columns[first].start < end - most {
                first += 1;
            }
            let mut left = self.at(last);
            let mut seconds: f64 = columns[first..=last].iter().map(Column::seconds).sum();
            if n == 0
                && first == 0
                && let Some(next) = found.get(1)
            {
                // It is as old as the next one will be.
                let age = columns[*next].end - end;
                if age > seconds && age <= most {
                    left = (left as f64 * seconds / age) as u64;
                }
            }
            let these = columns[first..=last].iter().zip(&mut spread.0[first..=last]);
            for (n, (column, of)) in these.enumerate() {
                let part = if seconds > 0.0 { column.seconds() / seconds } else { 1.0 };
                let is_last = n == last - first;
                // A rounded product may be more than there is.
                let part = if is_last { left } else { ((left as f64 * part) as u64).min(left) };
                *of += part;
                left -= part;
                seconds -= column.seconds();
            }
            first = last + 1;
        }
        spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(n: usize) -> Vec<Column> {
        let column = |n| Column { start: n as f64 * 0.5, end: n as f64 * 0.5 + 0.5, gap: n == 2 };
        (0..n).map(column).collect()
    }

    fn line(numbers: &[u64]) -> Line {
        let mut line = Line::default();
        numbers.iter().enumerate().for_each(|(n, number)| line.add(n, *number));
        line
    }

    #[test]
    fn columns_are_joined_with_what_is_in_them() {
        let mut all = columns(5);
        let mut of = line(&[1, 2, 0, 4, 5]);
        halve(&mut all);
        of.halve();
        assert_eq!(of.numbers(3), [3, 4, 5]);
        assert_eq!(all.iter().map(|column| column.end).collect::<Vec<_>>(), [1.0, 2.0, 2.5]);
        assert_eq!(all.iter().map(|column| column.gap).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(of.sum(), 12);
        assert_eq!(of.without(&line(&[1, 5])).numbers(3), [2, 0, 5]);
    }

    #[test]
    fn what_is_sampled_is_spread_over_the_time_in_which_it_came() {
        let all = columns(8);
        // Every two columns, that is a second; then nothing for long.
        let sampled = line(&[0, 10, 0, 21, 0, 0, 0, 8]);
        let spread = sampled.spread(&all, 1.1);
        assert_eq!(spread.numbers(8), [5, 5, 10, 11, 0, 0, 4, 4]);
        // The first was found half a second after the beginning, and is of a second.
        assert_eq!(line(&[10, 0, 12]).spread(&all, 1.1).numbers(3), [5, 6, 6]);
        assert_eq!(line(&[3, 4, 5]).spread(&columns(3), 1.1).numbers(3), [3, 4, 5]);
    }
}
