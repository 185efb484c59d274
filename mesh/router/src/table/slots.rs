//! Numbered places for things of which few change at a time.

use std::sync::Arc;

const CHUNK: usize = 64;

/// A vector with gaps. Copies share all chunks that are not changed.
#[derive(Clone, Debug)]
pub struct Slots<T>(Arc<Vec<Arc<[Option<T>; CHUNK]>>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Slots<T> {
    pub fn get(&self, slot: usize) -> Option<&T> {
        self.0.get(slot / CHUNK)?[slot % CHUNK].as_ref()
    }

    /// What is there, with its number.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.0.iter().flat_map(|chunk| chunk.iter()).enumerate().filter_map(|(slot, place)| Some((slot, place.as_ref()?)))
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    /// Places at which there may be something else than in another: those in chunks that they do not share, with what is there.
    pub fn unshared<'s>(&'s self, other: &'s Self) -> impl Iterator<Item = (Option<&'s T>, Option<&'s T>)> {
        let chunks = self.0.len().max(other.0.len());
        let at = |slots: &'s Self, chunk: usize| slots.0.get(chunk);
        let is_shared = move |chunk: &usize| matches!((at(self, *chunk), at(other, *chunk)), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        let places = (0..chunks).filter(move |chunk| !is_shared(chunk)).flat_map(|chunk| chunk * CHUNK..(chunk + 1) * CHUNK);
        places.map(|slot| (self.get(slot), other.get(slot)))
    }
}

impl<T: Clone> Slots<T> {
    /// Puts something there, or takes it away. Returns what was there.
    pub fn set(&mut self, slot: usize, value: Option<T>) -> Option<T> {
        let chunks = Arc::make_mut(&mut self.0);
        while chunks.len() <= slot / CHUNK {
            chunks.push(Arc::new(std::array::from_fn(|_| None)));
        }
        std::mem::replace(&mut Arc::make_mut(&mut chunks[slot / CHUNK])[slot % CHUNK], value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_had() {
        let mut slots = Slots::default();
        assert_eq!(slots.set(130, Some('a')), None);
        assert_eq!(slots.set(3, Some('b')), None);
        let copy = slots.clone();
        assert_eq!(slots.set(3, None), Some('b'));
        assert_eq!(slots.set(130, Some('c')), Some('a'));
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(130, &'c')]);
        assert_eq!(copy.iter().collect::<Vec<_>>(), [(3, &'b'), (130, &'a')]);
        assert_eq!(slots.unshared(&copy).filter(|(a, b)| a != b).collect::<Vec<_>>(), [(None, Some(&'b')), (Some(&'c'), Some(&'a'))]);
        assert_eq!(slots.unshared(&slots.clone()).count(), 0);
        assert_eq!((copy.get(4), copy.get(130), copy.get(100_000)), (None, Some(&'a'), None));
    }
}
