//! Counter-based random numbers: a draw is a function of its key, not of earlier draws.
//!
//! The text of a request therefore does not depend on the rest of the batch, or on how often drafts
//! were rolled back and drafted again.

/// Purpose of a draw at a position. Draws for different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Sampling a token from the draft's distribution q.
    Draft = 0,
    /// The acceptance test, u < p/q.
    Accept = 1,
    /// Sampling a corrected token from the residual (p - q)₊.
    Residual = 2,
    /// Sampling a token from the target's distribution p without a draft.
    Target = 3,
}

/// The random numbers of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRng {
    seed: u64,
    request: u64,
    /// Where the current run of accepted drafts began, for block verification; 0 otherwise.
    run: u32,
}

impl RequestRng {
    /// Random numbers of request number `request` under `seed`.
    pub fn new(seed: u64, request: u64) -> RequestRng {
        RequestRng { seed, request, run: 0 }
    }

    /// Other random numbers for all positions from `position` on, where a run of accepted drafts
    /// begins. `position` is below 2²⁹.
    ///
    /// Block verification needs them after a rejection: it has looked at the draws of all drafts of
    /// the chunk, also of those behind the rejected one. Token-by-token verification has not, and
    /// may use the same draws for the next drafts.
    pub fn start_run(&mut self, position: usize) {
        self.run = position as u32;
    }

    /// A uniform number in [0, 1) with 53 random bits, for the token at `position` of the sequence.
    pub fn uniform(&self, position: usize, purpose: Purpose) -> f64 {
        let low = |x: u64| x as u32;
        let high = |x: u64| (x >> 32) as u32;
        let purpose = purpose as u32 | self.run << 3; // purposes have three bits
        let counter = [low(position as u64), purpose, low(self.request), high(self.request)];
        let [a, b, _, _] = philox4x32(counter, [low(self.seed), high(self.seed)]);
        let bits = (u64::from(a) << 21) ^ (u64::from(b) >> 11); // 53 bits
        bits as f64 / (1_u64 << 53) as f64
    }
}

/// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let x = u64::from(counter[0]) * 0xD251_1F53;
        let y = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (y >> 32) as u32 ^ counter[1] ^ key[0],
            y as u32,
            (x >> 32) as u32 ^ counter[3] ^ key[1],
            x as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the authors' Random123 library (`kat_vectors`).
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let draw = |seed, request, position, purpose| {
            RequestRng::new(seed, request).uniform(position, purpose)
        };
        let base = draw(1, 2, 3, Purpose::Draft);
        assert_ne!(base, draw(1 << 40, 2, 3, Purpose::Draft));
        assert_ne!(base, draw(1, 2 << 40, 3, Purpose::Draft));
        assert_ne!(base, draw(1, 2, 4, Purpose::Draft));
        assert_ne!(base, draw(1, 2, 3, Purpose::Accept));
        let mut other_run = RequestRng::new(1, 2);
        other_run.start_run(3);
        assert_ne!(base, other_run.uniform(3, Purpose::Draft));
        other_run.start_run(0);
        assert_eq!(base, other_run.uniform(3, Purpose::Draft));
    }

    /// 100 000 draws in 100 bins: χ² has 99 degrees of freedom and exceeds 148.2 with probability
    /// 0.001.
    #[test]
    fn draws_are_uniform() {
        let mut bins = [0_u32; 100];
        for position in 0..100_000 {
            let u = RequestRng::new(7, 11).uniform(position, Purpose::Accept);
            bins[(u * 100.0) as usize] += 1;
        }
        let chi2: f64 = bins.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi2 < 148.2, "{chi2}");
    }
}
