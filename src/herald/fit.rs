//! Whether the kubelet takes more pods than the instance has addresses for, in words that name both and the remedy.

/// The pods a node may get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guests {
    /// The kubelet's max-pods.
    pub max: u64,
    /// Pods that need no address of ours, such as those on the host network.
    pub without: u64,
    /// Addresses that there can be for pods.
    pub addresses: u64,
    /// Where that number comes from, such as `ecs.g7.large holds 2 secondary ENIs of 10 addresses`.
    pub because: String,
}

/// Pods on the host network that may yet come.
const HOST_PODS: u64 = 10;

/// How the two go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// Pods will be placed here that cannot have an address.
    TooMany(String),
    /// Addresses will be left over.
    Spare(String),
    Exact,
}

impl Guests {
    pub fn fit(&self) -> Fit {
        let Guests { max, without, addresses, because } = self;
        let room = addresses + without;
        if *max > addresses + without.max(&HOST_PODS) {
            return Fit::TooMany(format!(
                "the kubelet takes {max} pods (max-pods) and there can be {addresses} addresses for pods: {because}; {without} pods \
                 need none. What is placed here beyond that waits for an address. Set maxPods in the kubelet's configuration to \
                 {room}, or take an instance type that holds more"
            ));
        }
        if max < addresses {
            return Fit::Spare(format!(
                "the kubelet takes {max} pods (max-pods) and there can be {addresses} addresses for pods: {because}; {without} pods \
                 need none. To use all of them, set maxPods in the kubelet's configuration to {room}"
            ));
        }
        Fit::Exact
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(max: u64) -> Fit {
        let because = "ecs.g7.large holds 2 secondary ENIs of 10 addresses".into();
        Guests { max, without: 2, addresses: 20, because }.fit()
    }

    #[test]
    fn both_numbers_and_the_remedy_are_named() {
        let Fit::TooMany(said) = fit(110) else { panic!("110 pods do not fit") };
        assert_eq!(
            said,
            "the kubelet takes 110 pods (max-pods) and there can be 20 addresses for pods: ecs.g7.large holds 2 secondary \
             ENIs of 10 addresses; 2 pods need none. What is placed here beyond that waits for an address. Set maxPods in the \
             kubelet's configuration to 22, or take an instance type that holds more"
        );
        let to_22 = "set maxPods in the kubelet's configuration to 22";
        assert!(matches!(fit(19), Fit::Spare(said) if said.contains(to_22)));
        assert!(matches!((fit(20), fit(22), fit(30), fit(31)), (Fit::Exact, Fit::Exact, Fit::Exact, Fit::TooMany(_))));
    }
}
