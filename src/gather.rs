//! Maps and sets filled one by one. `collect` sorts before it fills one: for each type that is five kilobytes of code.

pub trait Gather: Iterator + Sized {
    fn gather<C: Default + Extend<Self::Item>>(self) -> C {
        let mut all = C::default();
        all.extend(self);
        all
    }
}

impl<I: Iterator> Gather for I {}
