// run/schedule.h - the learning rate of an epoch: a stair that goes down at the milestones.
//
//     rate(epoch) = lr gamma^m,   m = how many milestones are <= epoch, epochs counted from 0
//
// A *milestone* is an epoch at which the rate drops; gamma is the factor of a drop, the option --gamma
// (0.1), and has nothing to do with batch norm's.
//
//     the recipe   epochs 0 to 49: 0.1    50 to 99: 0.01    100 to 149: 0.001
//
// Large steps travel far, but end up jumping about the bottom of a valley, from one slope to the
// other. Each drop lets the weights settle: the loss falls within an epoch. He et al., "Deep residual
// learning for image recognition", 2016, section 4.2, train their CIFAR-10 networks with two drops.
//
// Checked by `make check` (tests/random_test.c): the rate of each of the recipe's 150 epochs.
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include "options.h"

static inline double learning_rate_of(const options *o, int epoch) {
  double rate = o->lr;
  for (int i = 0; i < o->milestone_count; i++)
    if (epoch >= o->milestones[i]) rate *= o->gamma;
  return rate;
}

#endif
