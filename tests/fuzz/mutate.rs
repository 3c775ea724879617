//! Seeded mutation: the same inputs for the same seed and corpus, on every machine.

/// Octets of the longest input.
const LEN_MAX: usize = 4096;

/// Values that parsers trip over.
const INTERESTING: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 63, u64::MAX];

/// Makes new inputs out of a corpus.
pub struct Mutator {
    state: u64,
    corpus: Vec<Vec<u8>>,
    /// Words of the corpus, for texts.
    words: Vec<Vec<u8>>,
}

impl Mutator {
    /// A mutator of `corpus`, which holds at least one input.
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        let text = corpus.iter().filter(|data| std::str::from_utf8(data).is_ok());
        let is_word = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'/' | b'-' | b'_');
        let words = text.flat_map(|data| data.split(move |octet| !is_word(octet)));
        let words = words.filter(|word| !word.is_empty()).map(<[u8]>::to_vec).collect();
        Self { state: seed, corpus, words }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.random() % limit.max(1) as u64) as usize
    }

    /// The next input.
    pub fn next(&mut self) -> Vec<u8> {
        let index = self.below(self.corpus.len());
        let mut data = self.corpus[index].clone();
        let count = 1 + self.below(8);
        (0..count).for_each(|_| self.change(&mut data));
        data.truncate(LEN_MAX);
        data
    }

    fn change(&mut self, data: &mut Vec<u8>) {
        let at = self.below(data.len());
        let len = 1 + self.below(16.min(data.len().saturating_sub(at)));
        match self.below(9) {
            0 if !data.is_empty() => data[at] ^= 1 << self.below(8),
            1 if !data.is_empty() => data[at] = self.random() as u8,
            2 if !data.is_empty() => {
                let value = INTERESTING[self.below(INTERESTING.len())];
                let octets = if self.below(2) == 0 { value.to_le_bytes() } else { value.to_be_bytes() };
                let width = 1 << self.below(4);
                let octets = if octets[0] != 0 || value == 0 { &octets[..width] } else { &octets[8 - width..] };
                data.iter_mut().skip(at).zip(octets).for_each(|(to, from)| *to = *from);
            }
            3 => drop(data.drain(at..(at + len).min(data.len()))),
            4 => {
                let octets: Vec<u8> = (0..len).map(|_| self.random() as u8).collect();
                data.splice(at..at, octets);
            }
            // Said twice.
            5 if !data.is_empty() => {
                let part = data[at..(at + len * 4).min(data.len())].to_vec();
                let to = self.below(data.len());
                data.splice(to..to, part);
            }
            // Part of another input.
            6 => {
                let other = self.below(self.corpus.len());
                let from = self.below(self.corpus[other].len());
                let end = (from + self.below(256)).min(self.corpus[other].len());
                let part = self.corpus[other][from..end].to_vec();
                let end = if self.below(2) == 0 { at } else { (at + part.len()).min(data.len()) };
                data.splice(at..end, part);
            }
            7 if !self.words.is_empty() => {
                let word = self.below(self.words.len());
                data.splice(at..at, self.words[word].clone());
            }
            _ => data.truncate(at),
        }
    }
}
