//! A list that grows without being moved.

use std::ops::{Index, IndexMut};

/// Elements of a piece of memory. A list that doubles would need its old and its new memory at once.
const CHUNK: usize = 1 << 14;

/// Like a `Vec`, in pieces.
#[derive(Clone, Debug)]
pub(super) struct Arena<T> {
    chunks: Vec<Vec<T>>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T> Arena<T> {
    pub(super) const fn len(&self) -> usize {
        match self.chunks.as_slice() {
            [] => 0,
            [full @ .., last] => full.len() * CHUNK + last.len(),
        }
    }

    pub(super) fn push(&mut self, value: T) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(value),
            last => {
                // The first piece of a small tree stays small.
                let mut chunk = Vec::with_capacity(if last.is_some() { CHUNK } else { 1 });
                chunk.push(value);
                self.chunks.push(chunk);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.chunks.iter_mut().flatten()
    }
}

impl<T> Index<usize> for Arena<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index / CHUNK][index % CHUNK]
    }
}

impl<T> IndexMut<usize> for Arena<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index / CHUNK][index % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_across_pieces() {
        let mut arena = Arena::default();
        for i in 0..3 * CHUNK + 5 {
            assert_eq!(arena.len(), i);
            arena.push(i);
        }
        for value in arena.iter_mut() {
            *value += 1;
        }
        assert!(arena.iter().copied().eq(1..=3 * CHUNK + 5));
        for i in [0, CHUNK - 1, CHUNK, 3 * CHUNK + 4] {
            assert_eq!(arena[i], i + 1);
        }
    }
}
