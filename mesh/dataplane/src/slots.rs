//! Which backend stands in which slot of a virtual service.
//!
//! A scheduler draws a slot number below the count; the slot holds an address. A change of backends rewrites as few
//! slots as it can, so that its cost in the kernel follows the change and not the size of the service.

use std::{collections::HashMap, net::IpAddr};

/// The slots after the backends became `wanted`. What stays, stays in its slot; holes are filled by newcomers, then from
/// the end. An address that `wanted` holds several times gets as many slots.
pub(crate) fn rearrange(current: &[IpAddr], wanted: &[IpAddr]) -> Vec<IpAddr> {
    let mut missing: HashMap<IpAddr, usize> = HashMap::with_capacity(wanted.len());
    for address in wanted {
        *missing.entry(*address).or_default() += 1;
    }
    let mut take = |address: &IpAddr| match missing.get_mut(address) {
        Some(count) if *count > 0 => {
            *count -= 1;
            Some(*address)
        }
        _ => None,
    };
    let mut slots: Vec<Option<IpAddr>> = current.iter().map(&mut take).collect();
    let mut newcomers = wanted.iter().filter_map(take);
    for hole in slots.iter_mut().filter(|s| s.is_none()) {
        *hole = newcomers.next();
    }
    slots.extend(newcomers.map(Some));
    let mut index = 0;
    while index < slots.len() {
        if slots[index].is_some() {
            index += 1;
        } else {
            slots.swap_remove(index);
        }
    }
    slots.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect()
    }

    #[test]
    fn one_gone_moves_one() {
        assert_eq!(rearrange(&addresses(&[1, 2, 3, 4]), &addresses(&[1, 3, 4])), addresses(&[1, 4, 3]));
    }

    #[test]
    fn a_newcomer_takes_the_place_of_one_that_left() {
        assert_eq!(rearrange(&addresses(&[1, 2, 3]), &addresses(&[1, 3, 9])), addresses(&[1, 9, 3]));
    }

    #[test]
    fn one_that_is_wanted_twice_has_two_slots() {
        assert_eq!(rearrange(&addresses(&[1, 0, 0, 2]), &addresses(&[0, 1, 0, 0, 3])), addresses(&[1, 0, 0, 0, 3]));
        assert_eq!(rearrange(&addresses(&[1, 0, 0, 2]), &addresses(&[1, 2, 0])), addresses(&[1, 0, 2]));
    }

    #[test]
    fn damaged_slots_are_mended() {
        assert_eq!(rearrange(&addresses(&[1, 1, 2]), &addresses(&[1, 2])), addresses(&[1, 2]));
    }

    proptest! {
        #[test]
        fn holds_just_the_wanted_and_moves_little(old in prop::collection::hash_set(1u8..60, 0..40), new in prop::collection::hash_set(1u8..60, 0..40)) {
            let old: Vec<u8> = old.into_iter().collect();
            let wanted: Vec<u8> = new.iter().copied().collect();
            let slots = rearrange(&addresses(&old), &addresses(&wanted));
            let mut sorted = slots.clone();
            sorted.sort();
            let mut expected = addresses(&wanted);
            expected.sort();
            prop_assert_eq!(sorted, expected);
            let gone = old.iter().filter(|n| !new.contains(n)).count();
            let came = new.iter().filter(|n| !old.contains(n)).count();
            let rewritten = (0..slots.len()).filter(|i| addresses(&old).get(*i) != slots.get(*i)).count();
            prop_assert!(rewritten <= gone.max(came) , "{} rewritten for {} gone and {} new", rewritten, gone, came);
        }
    }
}
